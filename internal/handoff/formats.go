package handoff

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"accessbroker.internal/api"
)

// Text returns a credential as the content of a file: a token alone as it is, any other
// credential as a JSON object of its fields.
func Text(c *api.Credential) string {
	if token, ok := c.Secret["token"]; ok && len(c.Secret) == 1 {
		return token
	}
	var content any = c.Secret
	if c.Membership != nil {
		content = c.Membership
	}
	text, err := json.Marshal(content)
	if err != nil {
		return ""
	}
	return string(text) + "\n"
}

// header returns the header field that sends a credential over HTTP, as "curl -H @FILE"
// reads it; empty if a header is not enough.
func header(c *api.Credential) string {
	token, bound := c.Secret["token"], c.Confirm != nil && c.Confirm.KeyThumbprint != ""
	switch {
	case token == "" || bound: // RFC 9449 needs a new proof for each call
		return ""
	case c.Type == "bearer":
		return "Authorization: Bearer " + token + "\n"
	case c.Type == "vault":
		return "X-Vault-Token: " + token + "\n"
	}
	return ""
}

// Pgpass returns a line of PostgreSQL's password file that matches any host, port
// and database.
func Pgpass(c *api.Credential) (string, error) {
	if err := checkPostgres("pgpass", c); err != nil {
		return "", err
	}
	escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace
	return "*:*:*:" + escape(c.Secret["username"]) + ":" + escape(c.Secret["password"]), nil
}

// maxServiceLine is the longest line of a service file that libpq reads, in bytes.
const maxServiceLine = 1000

// Pgservice returns a section of PostgreSQL's connection service file, which has no
// escapes. libpq drops white space at the end of a line.
func Pgservice(c *api.Credential, section string) (string, error) {
	if err := checkPostgres("pgservice", c); err != nil {
		return "", err
	}
	text := "[" + section + "]\n"
	for _, field := range [][2]string{{"user", c.Secret["username"]}, {"password", c.Secret["password"]}} {
		line := field[0] + "=" + field[1]
		if strings.TrimRight(line, " \t\v\f") != line || len(line) > maxServiceLine {
			return "", fmt.Errorf("the %s ends with white space or is too long, which a service file can't represent", field[0])
		}
		text += line + "\n"
	}
	return text, nil
}

// checkPostgres refuses a credential that PostgreSQL's files can't represent.
func checkPostgres(format string, c *api.Credential) error {
	if c.Type != "userpass" {
		return fmt.Errorf("-o %s is for credentials of type \"userpass\", and this one is of type %q", format, c.Type)
	}
	if strings.ContainsAny(c.Secret["username"]+c.Secret["password"], "\r\n\x00") {
		return errors.New("the user name or password has a line break, which PostgreSQL's files can't represent")
	}
	return nil
}

// An AWSCredential is the output of a credential_process. See "Sourcing
// credentials with an external process" in the AWS CLI's user guide.
type AWSCredential struct {
	Version         int
	AccessKeyID     string `json:"AccessKeyId"`
	SecretAccessKey string
	SessionToken    string    `json:",omitempty"`
	Expiration      time.Time // ISO 8601
}

// AWSProcess returns a credential as the output of a credential_process.
func AWSProcess(c *api.Credential) (string, error) {
	if c.Type != "aws" {
		return "", fmt.Errorf("the credential is of type %q, not \"aws\"", c.Type)
	}
	text, err := json.Marshal(AWSCredential{
		1, c.Secret["access_key_id"], c.Secret["secret_access_key"], c.Secret["session_token"], c.ExpiresAt.UTC(),
	})
	return string(text) + "\n", err
}
