package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"accessbroker.internal/api"
)

const silentFile = `
tickets:
  desk:
    http: {url: "%[1]s/tickets/{ticket}", ca_file: desk-ca.pem, allow_private: true, fields: {id: /key, state: /status}}
    pattern: "DESK-[0-9]+"
    interval: 5s
    stale_after: 10s
scim:
  corp: {provider: login, subject: externalId, stale_after: 1m}
`

const ticketedPolicy = `
@id("fixes-need-a-ticket")
@ticket_state("open")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets-api")
when { context.scopes.contains("tickets:fix") };
`

// TestSilentSources turns off every source of facts for longer than its stale_after: a
// ticket system, and a directory that provisions people. No access is left that rests on
// them, and access that rests on neither stays.
func TestSilentSources(t *testing.T) {
	t.Parallel() // it mostly waits
	o := startOffice(t, spireOf(t), brokerBinary(t))
	desk := startDesk(t)
	o.write(t, "desk-ca.pem", desk.certificate)
	o.write(t, "policies/ticketed.cedar", ticketedPolicy)
	o.write(t, "policies/groups.yaml", strings.ReplaceAll(officeGroups, "members: [login/ben]", "members: [login/ben, login/cleo]")) // what a provider's directory states replaces claims
	file := strings.ReplaceAll(readText(t, o.dir+"/broker.yaml"), "tickets:close, tickets:purge", "tickets:fix, tickets:close, tickets:purge")
	file = strings.Replace(file, "serve: [ui, api, oauth, log]", "serve: [ui, api, oauth, log, scim]", 1)
	o.write(t, "broker.yaml", file+fmt.Sprintf(silentFile, desk.url))
	o.broker.stop()
	o.start(t)
	scim, ids := o.provision(t, "ben", "cleo")
	home := t.TempDir()
	o.terminalLogin(t, home, "ben")
	o.testSourcesEnd(t, desk, scim, ids["cleo"])

	free := o.token(t, o.agentCLI, "--scope", "tickets:read")
	ticketed := o.token(t, o.agentCLI, "--scope", "tickets:fix", "--ticket", "DESK-7")
	personal := o.token(t, func(args ...string) (string, string, int) { return o.personCLI(home, args...) }, "--scope", "tickets:read")
	for name, c := range map[string]*api.Credential{"free": free, "ticketed": ticketed, "personal": personal} {
		if err := o.alive(t, c, true); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	desk.down.Store(true) // and the directory's client calls no more
	eventually(t, "the end of access for a ticket that no one can look at", time.Minute, func() error { return o.alive(t, ticketed, false) })
	eventually(t, "the end of a person's access whose directory is silent", 3*time.Minute, func() error { return o.alive(t, personal, false) })
	for _, c := range []*api.Credential{ticketed, personal} {
		if records := o.records(t, "--about", c.Lease, "-o", "json"); !strings.Contains(records, `"cause":"stale"`) || !strings.Contains(records, `"how":"fact_ended"`) {
			t.Errorf("the records of the end: %s", records)
		}
	}
	if out, errs, code := o.agentCLI("request", "tickets-api", "--why", "x", "--scope", "tickets:fix", "--ticket", "DESK-7"); code != 3 || !strings.Contains(errs, "fact_unknown") {
		t.Errorf("a request for the ticket: %d %s%s", code, out, errs)
	}
	if out, errs, code := o.personCLI(home, "request", "tickets-api", "--why", "x", "--scope", "tickets:read"); code != 3 {
		t.Errorf("a request of the person: %d %s%s", code, out, errs)
	}
	if err := o.alive(t, free, true); err != nil {
		t.Errorf("access that rests on neither: %v", err)
	}
	// What is left rests on no source that is silent.
	var page api.LeasePage
	out, errs, code := o.cli(o.bin, "leases", "--holder", "*", "--live", "--admin-socket", o.dir+"/admin.sock", "-o", "json")
	if err := json.Unmarshal([]byte(out), &page); err != nil || code != 0 || len(page.Leases) != 1 || page.Leases[0].ID != free.Lease {
		t.Errorf("live leases: %s%s", out, errs)
	}
}

// A desk is a ticket system with one open ticket for every number.
type desk struct {
	url, certificate string
	down, closed     atomic.Bool
}

func startDesk(t testing.TB) *desk {
	t.Helper()
	d := &desk{}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d.down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		status := "open"
		if d.closed.Load() {
			status = "closed"
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"key": strings.TrimPrefix(r.URL.Path, "/tickets/"), "status": status})
	}))
	t.Cleanup(s.Close)
	d.url = s.URL
	d.certificate = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	return d
}

// provision creates users by SCIM, as the client of a directory does. It returns a function
// for further calls, and the ids of the users.
func (o *office) provision(t testing.TB, names ...string) (scim func(method, path, body string) []byte, ids map[string]string) {
	t.Helper()
	out, errs, code := o.cli(o.bin, "scim", "token", "corp", "--admin-socket", o.dir+"/admin.sock", "-o", "json")
	var token struct{ URL, Token string }
	if err := json.Unmarshal([]byte(out), &token); err != nil || code != 0 || token.Token == "" {
		t.Fatalf("scim token: %d %v %s%s", code, err, out, errs)
	}
	web := client(t, &tls.Config{RootCAs: trustOf(t, o.dir+"/web-ca.pem")}, true)
	ids = map[string]string{}
	scim = func(method, path, body string) []byte {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, o.web+"/scim/v2/"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token.Token)
		r.Header.Set("Content-Type", "application/scim+json")
		resp, err := web.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(resp.Body)
		err = errors.Join(err, resp.Body.Close())
		if err != nil || resp.StatusCode/100 != 2 {
			t.Fatalf("%s %s: %d %s %v", method, path, resp.StatusCode, answer, err)
		}
		return answer
	}
	for _, name := range names {
		var user struct{ ID string }
		answer := scim(http.MethodPost, "Users", fmt.Sprintf(`{"schemas":["urn:ietf:params:scim:schemas:core:2.0:User"],"userName":%q,"externalId":%q,"active":true}`, name, name))
		if err := json.Unmarshal(answer, &user); err != nil || user.ID == "" {
			t.Fatalf("creating %s: %s %v", name, answer, err)
		}
		ids[name] = user.ID
	}
	return scim, ids
}

// testSourcesEnd ends facts at their sources: a ticket is closed, and a directory
// deactivates a person.
func (o *office) testSourcesEnd(t *testing.T, d *desk, scim func(method, path, body string) []byte, cleo string) {
	home := t.TempDir()
	o.terminalLogin(t, home, "cleo")
	ticketed := o.token(t, o.agentCLI, "--scope", "tickets:fix", "--ticket", "DESK-8")
	personal := o.token(t, func(args ...string) (string, string, int) { return o.personCLI(home, args...) }, "--scope", "tickets:read")
	d.closed.Store(true)
	scim(http.MethodPatch, "Users/"+cleo, `{"schemas":["urn:ietf:params:scim:api:messages:2.0:PatchOp"],"Operations":[{"op":"Replace","path":"active","value":"False"}]}`)
	for cause, c := range map[string]*api.Credential{"ticket_closed": ticketed, "account_disabled": personal} {
		eventually(t, "the end of access: "+cause, time.Minute, func() error { return o.alive(t, c, false) })
		if records := o.records(t, "--about", c.Lease, "-o", "json"); !strings.Contains(records, `"cause":"`+cause+`"`) || !strings.Contains(records, `"how":"fact_ended"`) {
			t.Errorf("the records of the end: %s", records)
		}
	}
	d.closed.Store(false)
}

// token returns a credential for tickets-api.
func (o *office) token(t testing.TB, cli func(...string) (string, string, int), args ...string) *api.Credential {
	t.Helper()
	out, errs, code := cli(append([]string{"request", "tickets-api", "--ttl", "10m", "--why", "x", "-o", "json"}, args...)...)
	var c api.Credential
	if err := json.Unmarshal([]byte(out), &c); err != nil || code != 0 {
		t.Fatalf("request %s: %d %v %s%s", args, code, err, out, errs)
	}
	return &c
}

// alive returns nil if a lease is active, or if it has ended, as wanted.
func (o *office) alive(t testing.TB, c *api.Credential, want bool) error {
	t.Helper()
	var page api.LeasePage
	out, errs, code := o.cli(o.bin, "leases", "--holder", "*", "--live", "--limit", "200", "--admin-socket", o.dir+"/admin.sock", "-o", "json")
	if err := json.Unmarshal([]byte(out), &page); err != nil || code != 0 {
		t.Fatalf("leases: %d %v %s", code, err, errs)
	}
	found := false
	for _, l := range page.Leases {
		found = found || l.ID == c.Lease && l.Status == api.LeaseActive
	}
	if found != want {
		return fmt.Errorf("the lease is active: %t", found)
	}
	return nil
}

func readText(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func trustOf(t testing.TB, path string) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(readText(t, path))) {
		t.Fatalf("%s has no certificate", path)
	}
	return pool
}
