// A client that is generated from the OpenAPI document. It requests a credential of each
// entitlement and prints what it got, one JSON object a line. Arguments: the broker's
// URL and entitlements. The JWT-SVID is in the environment.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"

	"client/broker"
)

func main() {
	log.SetFlags(0)
	if err := run(context.Background(), os.Args[1], os.Args[2:]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, url string, entitlements []string) error {
	authenticate := func(_ context.Context, r *http.Request) error {
		r.Header.Set("Authorization", "Bearer "+os.Getenv("SVID"))
		return nil
	}
	c, err := broker.NewClientWithResponses(url, broker.WithRequestEditorFn(authenticate))
	if err != nil {
		return err
	}
	who, err := c.WhoamiWithResponse(ctx)
	if err != nil {
		return err
	}
	if who.JSON200 == nil {
		return fmt.Errorf("whoami: %s", who.Status())
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(map[string]any{"id": who.JSON200.Id, "kind": who.JSON200.Kind}); err != nil {
		return err
	}
	for _, entitlement := range entitlements {
		line, err := request(ctx, c, entitlement)
		if err != nil {
			return fmt.Errorf("requesting %s: %w", entitlement, err)
		}
		if err := out.Encode(line); err != nil {
			return err
		}
	}
	return nil
}

func request(ctx context.Context, c *broker.ClientWithResponses, entitlement string) (map[string]any, error) {
	why := "Triage of ticket 4711"
	r, err := c.AskAndCollectWithResponse(ctx, nil, broker.Ask{Entitlement: entitlement, Justification: &why})
	if err != nil {
		return nil, err
	}
	line := map[string]any{"entitlement": entitlement, "status": r.StatusCode()}
	switch {
	case r.JSON201 != nil:
		kind, err := r.JSON201.Discriminator()
		if err != nil {
			return nil, err
		}
		used, expires, err := use(r.JSON201)
		if err != nil {
			return nil, err
		}
		line["type"], line["use"], line["expires"] = kind, used, !expires.IsZero()
	case r.JSON202 != nil:
		line["pending"] = r.JSON202.Id
	case r.ApplicationproblemJSON403 != nil:
		line["code"] = r.ApplicationproblemJSON403.Code
	}
	return line, nil
}

// use returns what a program needs to use a credential, without the secret part, and its
// expiry.
func use(c *broker.Credential) (text string, expires broker.Time, err error) {
	member, err := c.ValueByDiscriminator()
	if err != nil {
		return "", expires, err
	}
	switch c := member.(type) {
	case broker.BearerCredential:
		return "token " + c.Secret.Token[:2], c.ExpiresAt, nil
	case broker.VaultCredential:
		return "token " + c.Secret.Token[:4], c.ExpiresAt, nil
	case broker.AWSCredential:
		return "key " + c.Secret.AccessKeyId, c.ExpiresAt, nil
	case broker.UserpassCredential:
		return "user " + c.Secret.Username, c.ExpiresAt, nil
	case broker.CertificateCredential:
		return "chain " + strings.SplitN(*c.Secret.Chain, "\n", 2)[0], c.ExpiresAt, nil
	case broker.DataCredential:
		return "fields " + strings.Join(slices.Sorted(maps.Keys(c.Secret)), ","), c.ExpiresAt, nil
	case broker.MembershipCredential:
		return "member of " + c.Membership.Group + " in " + c.Membership.System, c.ExpiresAt, nil
	}
	return "", expires, fmt.Errorf("unexpected %T", member)
}
