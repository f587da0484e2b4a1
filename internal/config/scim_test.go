package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/directory"
)

const scimPeople = `  people:
    login: {issuer: "https://login.acme.test", client_id: broker, client_secret_file: secret}
    partner: {issuer: "https://partner.test", client_id: broker, client_secret_file: secret}
`

// understandSCIM loads the usual file with two providers and a scim section.
func understandSCIM(t *testing.T, section string) (*Config, error) {
	t.Helper()
	dir := sealedDir(t)
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return understand(dir, strings.Replace(goodConfig, "store: sqlite", scimPeople+"store: sqlite", 1)+section)
}

func TestSCIMSources(t *testing.T) {
	c, err := understandSCIM(t, `scim:
  corp: {provider: login, subject: externalId}
  guests: {provider: partner, subject: "emails[primary eq true].value", groups: externalId, manager: userName, clients: ["spiffe://acme.test/scim"], unknown: claims, stale_after: 4h, on_stale: hold}
`)
	if err != nil || len(c.SCIM) != 2 {
		t.Fatalf("got %+v, %v", c, err)
	}
	corp, guests := c.SCIM[0], c.SCIM[1]
	if corp.Groups != directory.GroupName || corp.Manager != directory.ManagerID || corp.Open || corp.OnStale != broker.OnStaleEnd || corp.StaleAfter != 0 {
		t.Errorf("the defaults: got %+v", corp)
	}
	if guests.Groups != directory.GroupExternalID || guests.Manager != directory.ManagerUserName || !guests.Open || guests.OnStale != broker.OnStaleHold || guests.StaleAfter != 4*time.Hour || len(guests.Clients) != 1 {
		t.Errorf("got %+v", guests)
	}
	ana := broker.StandingKey{Kind: broker.FactPerson, Name: "login/ana"}
	if !corp.Governs(ana) || guests.Governs(ana) || corp.Governs(broker.StandingKey{Kind: broker.FactPerson, Name: "loginx/ana"}) || corp.Governs(broker.StandingKey{Kind: broker.FactAgent, Name: "login/ana"}) {
		t.Error("a source must govern the people of its provider, unless it is open, and nothing else")
	}
	if !strings.Contains(strings.Join(c.Warnings, "\n"), "stale_after") {
		t.Errorf("got warnings %q, want one about stale_after", c.Warnings)
	}
}

func TestBadSCIMSources(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"no provider":          {"{subject: externalId}", "write the name of the provider"},
		"an unknown provider":  {"{provider: logn, subject: externalId}", `did you mean "login"`},
		"no subject":           {"{provider: login}", "externalId"},
		"a misspelled subject": {"{provider: login, subject: externalID2}", "is not the path of an attribute"},
		"a read-only subject":  {"{provider: login, subject: id}", "does not have one text"},
		"a list as subject":    {"{provider: login, subject: emails}", "does not have one text"},
		"a flag as subject":    {"{provider: login, subject: active}", "does not have one text"},
		"groups":               {"{provider: login, subject: externalId, groups: id}", "choose displayName or externalId"},
		"manager":              {"{provider: login, subject: externalId, manager: email}", "choose id or userName or externalId"},
		"unknown":              {"{provider: login, subject: externalId, unknown: allow}", "choose refuse or claims"},
		"on_stale":             {"{provider: login, subject: externalId, on_stale: keep}", "choose end or hold"},
		"a short stale_after":  {"{provider: login, subject: externalId, stale_after: 1s}", "at least 1m"},
		"no SPIFFE ID":         {"{provider: login, subject: externalId, clients: [login/ana]}", "is not a SPIFFE ID"},
		"a foreign domain":     {`{provider: login, subject: externalId, clients: ["spiffe://evil.test/x"]}`, "is not in attest.trust_domains"},
		"a client twice":       {`{provider: login, subject: externalId, clients: ["spiffe://acme.test/x", "spiffe://acme.test/x"]}`, "a client provisions one source"},
		"an unknown key":       {"{provider: login, subject: externalId, token: x}", `unknown key "token"`},
		"a second source":      {"{provider: login, subject: externalId}\n  more: {provider: login, subject: externalId}", "a provider has one source"},
	} {
		_, err := understandSCIM(t, "scim:\n  corp: "+test.text+"\n")
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
	if _, err := understandSCIM(t, "scim:\n  \"co/rp\": {provider: login, subject: externalId}\n"); err == nil || !strings.Contains(err.Error(), "is not a valid name") {
		t.Errorf("a bad name: got %v", err)
	}
}
