package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
)

func (a *app) awsCommand() *cobra.Command {
	var f askFlags
	c := &cobra.Command{
		Use:   "aws ENTITLEMENT",
		Short: "Print AWS credentials for a credential_process",
		Long: `aws requests a credential and prints it in the format of credential_process, the
interface by which the AWS CLI and SDKs get credentials from another program.
They cache the credential and run the program again shortly before it expires.

` + exitHelp,
		Example: `  # in ~/.aws/config
  [profile reports]
  credential_process = broker aws reports --scope read --param prefix=acme --why "nightly report"`,
		Args:              exactly(1, "one entitlement"),
		ValidArgsFunction: a.completeEntitlement,
		RunE: func(c *cobra.Command, args []string) error {
			return a.withCredential(c.Context(), args[0], f, func(ctx context.Context, client *api.Client, credential *api.Credential) error {
				return a.handOverTo(ctx, client, credential, a.printProcess)
			})
		},
	}
	f.add(c)
	completes(c, "scope", a.completeScope)
	a.client.addPerson(c)
	return c
}

// A processCredential is the output of a credential_process. See "Sourcing
// credentials with an external process" in the AWS CLI's user guide.
type processCredential struct {
	Version         int
	AccessKeyID     string `json:"AccessKeyId"`
	SecretAccessKey string
	SessionToken    string    `json:",omitempty"`
	Expiration      time.Time // ISO 8601
}

func (a *app) printProcess(c *api.Credential) error {
	if c.Type != "aws" {
		return fmt.Errorf("the credential is of type %q, not \"aws\"", c.Type)
	}
	return json.NewEncoder(a.out).Encode(processCredential{
		1, c.Secret["access_key_id"], c.Secret["secret_access_key"], c.Secret["session_token"], c.ExpiresAt.UTC(),
	})
}
