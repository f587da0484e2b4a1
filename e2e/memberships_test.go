package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/membership"
	"accessbroker.internal/e2e/servers"
	"accessbroker.internal/issuers/issuertest"
	"accessbroker.internal/issuers/ldap"
	"accessbroker.internal/issuers/scim"
	"accessbroker.internal/store"
)

// A scimmy is an independent SCIM server: npm's scimmy with its routers.
type scimmy struct {
	port   int
	server *process
}

const scimToken = "only-in-tests"

// startScimmy starts a server with users and groups, whose ids are "u-NAME" and "g-NAME".
func startScimmy(t testing.TB, users, groups []string) *scimmy {
	t.Helper()
	modules, err := servers.Modules("scimmy")
	if err != nil {
		t.Fatal(err)
	}
	// Node finds modules next to the program.
	program := filepath.Join(t.TempDir(), "server.mjs")
	text, err := os.ReadFile("clients/scimmy/server.mjs")
	if err == nil {
		err = errors.Join(os.WriteFile(program, text, 0o600), os.Symlink(modules, filepath.Join(filepath.Dir(program), "node_modules")))
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &scimmy{port: freePort(t)}
	config, err := json.Marshal(map[string]any{"port": s.port, "token": scimToken, "users": users, "groups": groups})
	if err != nil {
		t.Fatal(err)
	}
	if s.server, err = start(t, "scimmy", installed(t, "node"), program, string(config)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the start of scimmy", time.Minute, func() error {
		if s.server.ended() {
			t.Fatalf("scimmy did not start:\n%s", s.server.out)
		}
		_, err := s.call(http.MethodGet, "/Groups", "")
		return err
	})
	return s
}

func (s *scimmy) url() string { return fmt.Sprintf("http://127.0.0.1:%d/scim/v2", s.port) }

func (s *scimmy) call(method, path, body string) (map[string]any, error) {
	r, err := http.NewRequest(method, s.url()+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+scimToken)
	r.Header.Set("Content-Type", "application/scim+json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var answer map[string]any
	err = json.NewDecoder(resp.Body).Decode(&answer)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s %v", method, path, resp.Status, answer)
	}
	return answer, err
}

// members returns the ids of a group's members.
func (s *scimmy) members(t testing.TB, group string) (ids []string) {
	t.Helper()
	answer, err := s.call(http.MethodGet, "/Groups/g-"+group, "")
	if err != nil {
		t.Fatal(err)
	}
	list, _ := answer["members"].([]any)
	for _, m := range list {
		ids = append(ids, m.(map[string]any)["value"].(string))
	}
	slices.Sort(ids)
	return ids
}

// A ledgerOf is a ledger over a store of its own.
func ledgerOf(t testing.TB) (*membership.Ledger, *store.Store) {
	s := issuertest.Store(t)
	return membership.New(membership.Config{Store: s, List: store.MembershipsIn(s).List}), s
}

const agentTriage = "spiffe://acme.test/agent/triage"

// openLease stores a lease that is being issued.
func openLease(t testing.TB, s *store.Store, issuer *membership.Issuer, e *broker.Entitlement) broker.Lease {
	t.Helper()
	l := issuertest.Lease(time.Now())
	l.Holder, l.Issuer, l.Status, l.Persists, l.Deadline = agentTriage, "directory", broker.LeaseIssuing, true, time.Now().Add(broker.IssueDeadline)
	prepared, err := issuer.Prepare(t.Context(), broker.Order{Lease: l, Entitlement: e})
	if err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	l.Handle = prepared.Handle
	r := audit.Record{Kind: audit.LeaseOpened, Lease: &audit.LeaseFacts{ID: l.ID.String()}}
	if _, err := broker.Write(t.Context(), s, nil, r, func(tx broker.Tx) error { tx.Put(&l); return nil }); err != nil {
		t.Fatal(err)
	}
	return l
}

// issuer returns an issuer of the directory. change may be nil.
func (s *slapd) issuer(t testing.TB, ledger *membership.Ledger, change func(*ldap.Config)) *membership.Issuer {
	t.Helper()
	text, err := os.ReadFile(s.path("cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	cfg := ldap.Config{
		Name: "directory", URL: s.url(), TLS: &tls.Config{RootCAs: roots}, BindDN: slapdBroker, Password: func() (string, error) { return slapdPassword, nil },
		Base: "dc=acme,dc=test", PeopleBase: "ou=people,dc=acme,dc=test", Match: "uid", IDAttribute: "entryUUID",
		Ledger: ledger, Names: membership.Names{Accounts: map[string]string{agentTriage: "triage"}},
	}
	if change != nil {
		change(&cfg)
	}
	return ldap.New(cfg)
}

// Each class of groups of OpenLDAP, against the contract of an issuer.
func TestLDAPMembershipConforms(t *testing.T) {
	t.Parallel()
	dir := startSlapd(t)
	ledger, s := ledgerOf(t)
	issuer := dir.issuer(t, ledger, nil)
	for group, class := range map[string]struct {
		attribute, value string
		role             bool
	}{
		"admins": {"member", personDN("triage"), false},
		"unique": {"uniqueMember", personDN("triage"), false},
		"unix":   {"memberUid", "triage", false},
		"oncall": {"roleOccupant", personDN("triage"), true},
	} {
		t.Run(group, func(t *testing.T) {
			e := &broker.Entitlement{Name: group, System: "directory", Spec: &ldap.Spec{Group: groupDN(group), Role: class.role}}
			l := openLease(t, s, issuer, e)
			credential, _, err := issuer.Issue(t.Context(), broker.Order{Lease: l, Entitlement: e})
			if err != nil {
				t.Fatal(err)
			}
			if credential.Joined.Group != groupDN(group) {
				t.Errorf("joined %+v", credential.Joined)
			}
			if got := dir.members(t, group, class.attribute); !slices.Equal(got, []string{class.value}) {
				t.Errorf("members: got %q", got)
			}
			for range 2 {
				if err := issuer.Revoke(t.Context(), l); err != nil {
					t.Errorf("Revoke: %v", err)
				}
			}
			if got := dir.members(t, group, class.attribute); len(got) != 0 {
				t.Errorf("members after the end: got %q", got)
			}
		})
	}
}

// What happens to users and groups of a directory while a lease lasts.
func TestLDAPMembershipThroughChanges(t *testing.T) {
	t.Parallel()
	rename := func(t *testing.T, dir *slapd) {
		dir.must(t, "ldapmodrdn", "", "-r", personDN("triage"), "uid=sorting")
	}
	for name, test := range map[string]struct {
		conf    string
		during  func(t *testing.T, dir *slapd)
		failing bool // the end fails until the directory is restarted as it was
		left    []string
	}{
		"renamed, references follow": {"overlay refint\nrefint_attributes member\n", rename, false, nil},
		"renamed, references stay":   {"", rename, false, nil},
		"user deleted":               {"", func(t *testing.T, dir *slapd) { dir.must(t, "ldapdelete", "", personDN("triage")) }, false, nil},
		"group renamed": {"", func(t *testing.T, dir *slapd) {
			dir.must(t, "ldapmodrdn", "", "-r", groupDN("admins"), "cn=managers")
			t.Cleanup(func() {
				if got := dir.members(t, "managers", "member"); len(got) != 0 {
					t.Errorf("members of the renamed group: got %q", got)
				}
			})
		}, false, nil},
		"group deleted":  {"", func(t *testing.T, dir *slapd) { dir.must(t, "ldapdelete", "", groupDN("admins")) }, false, nil},
		"another member": {"", func(t *testing.T, dir *slapd) { dir.change(t, "add", "admins", "member", personDN("bo")) }, false, []string{personDN("bo")}},
		"read-only": {"", func(t *testing.T, dir *slapd) {
			dir.server.stop()
			dir.configure(t, "readonly on")
			dir.start(t)
		}, true, nil},
		"down": {"", func(t *testing.T, dir *slapd) { dir.server.stop() }, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := startSlapd(t, test.conf)
			ledger, s := ledgerOf(t)
			issuer := dir.issuer(t, ledger, nil)
			e := &broker.Entitlement{Name: "admins", Spec: &ldap.Spec{Group: groupDN("admins")}}
			l := openLease(t, s, issuer, e)
			if _, _, err := issuer.Issue(t.Context(), broker.Order{Lease: l, Entitlement: e}); err != nil {
				t.Fatal(err)
			}
			test.during(t, dir)
			if test.failing {
				if err := issuer.Revoke(t.Context(), l); !errors.Is(err, broker.ErrIssuerRefused) && !errors.Is(err, broker.ErrIssuerUnavailable) {
					t.Errorf("Revoke: got %v, want a failure", err)
				}
				dir.server.stop()
				dir.configure(t)
				dir.start(t)
			}
			if err := issuer.Revoke(t.Context(), l); err != nil {
				t.Fatalf("Revoke: %v", err)
			}
			if strings.HasPrefix(name, "group") {
				return
			}
			if got := dir.members(t, "admins", "member"); !slices.Equal(got, test.left) {
				t.Errorf("members at the end: got %q, want %q", got, test.left)
			}
		})
	}
}

// A group of a class that must have a member keeps a placeholder instead of the last one.
func TestLDAPLastMemberLeavesAPlaceholder(t *testing.T) {
	t.Parallel()
	dir := startSlapd(t)
	ledger, s := ledgerOf(t)
	e := &broker.Entitlement{Name: "bare", Spec: &ldap.Spec{Group: groupDN("bare")}}
	issuer := dir.issuer(t, ledger, nil)
	l := openLease(t, s, issuer, e)
	if _, _, err := issuer.Issue(t.Context(), broker.Order{Lease: l, Entitlement: e}); err != nil {
		t.Fatal(err)
	}
	dir.change(t, "delete", "bare", "member", personDN("bo"))
	if err := issuer.Revoke(t.Context(), l); !errors.Is(err, broker.ErrIssuerRefused) {
		t.Errorf("without a placeholder: got %v", err)
	}
	issuer = dir.issuer(t, ledger, func(c *ldap.Config) { c.Placeholder = "cn=nobody" })
	if err := issuer.Revoke(t.Context(), l); err != nil {
		t.Errorf("with a placeholder: %v", err)
	}
	if got := dir.members(t, "bare", "member"); len(got) != 0 {
		t.Errorf("members: got %q", got)
	}
}

// What the broker must not trust: another authority, a wrong password, a name that is a
// filter, and a user who is not there.
func TestLDAPRefusals(t *testing.T) {
	t.Parallel()
	dir := startSlapd(t)
	ledger, _ := ledgerOf(t)
	e := &broker.Entitlement{Name: "admins", Spec: &ldap.Spec{Group: groupDN("admins")}}
	name := func(name string) func(*ldap.Config) {
		return func(c *ldap.Config) { c.Names = membership.Names{Accounts: map[string]string{agentTriage: name}} }
	}
	for what, test := range map[string]struct {
		change func(*ldap.Config)
		want   error
	}{
		"another authority": {func(c *ldap.Config) { c.TLS = &tls.Config{RootCAs: x509.NewCertPool()} }, broker.ErrIssuerUnavailable},
		"wrong password":    {func(c *ldap.Config) { c.Password = func() (string, error) { return "wrong", nil } }, broker.ErrIssuerRefused},
		"no password":       {func(c *ldap.Config) { c.Password = func() (string, error) { return "", nil } }, broker.ErrIssuerRefused},
		"unknown user":      {name("nobody"), broker.ErrIssuerRefused},
		"any user":          {name("*"), broker.ErrIssuerRefused},
		"a filter":          {name("triage)(uid=*"), broker.ErrIssuerRefused},
		"other letters":     {name("\uff54riage"), broker.ErrIssuerRefused}, // RFC 4518 maps them to triage
		"white space":       {name("  triage "), broker.ErrIssuerRefused},
		"no such base":      {func(c *ldap.Config) { c.PeopleBase = "ou=elsewhere,dc=acme,dc=test" }, broker.ErrIssuerRefused},
	} {
		issuer := dir.issuer(t, ledger, test.change)
		l := issuertest.Lease(time.Now())
		l.Holder = agentTriage
		if p, err := issuer.Prepare(t.Context(), broker.Order{Lease: l, Entitlement: e}); !errors.Is(err, test.want) {
			t.Errorf("%s: got %s, %v, want %v", what, p.Handle, err, test.want)
		}
	}
}

// An independent SCIM server, against the contract of an issuer.
func TestSCIMMembershipConforms(t *testing.T) {
	t.Parallel()
	system := startScimmy(t, []string{"triage", "bo"}, []string{"Sales"})
	ledger, s := ledgerOf(t)
	issuer := scim.New(scim.Config{
		Name: "crm", URL: system.url(), HTTP: http.DefaultClient, Token: func() (string, error) { return scimToken, nil }, Match: "userName", Read: scim.ReadGroup,
		Ledger: ledger, Names: membership.Names{Accounts: map[string]string{agentTriage: "triage"}},
	})
	e := &broker.Entitlement{Name: "sales", System: "crm", Spec: &scim.Spec{Group: "Sales"}}
	issuertest.Conform(t, issuer, openLease(t, s, issuer, e), e)
	first, second := openLease(t, s, issuer, e), openLease(t, s, issuer, e)
	for _, l := range []broker.Lease{first, second} {
		if _, _, err := issuer.Issue(t.Context(), broker.Order{Lease: l, Entitlement: e}); err != nil {
			t.Fatal(err)
		}
	}
	if err := issuer.Revoke(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if got := system.members(t, "Sales"); !slices.Equal(got, []string{"u-triage"}) {
		t.Errorf("after the first of two leases: got %q", got)
	}
	if _, err := system.call(http.MethodDelete, "/Users/u-triage", ""); err == nil {
		t.Error("scimmy answers a deletion with no content")
	}
	if err := issuer.Revoke(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	if got := system.members(t, "Sales"); len(got) != 0 {
		t.Errorf("after the deletion of the user: got %q", got)
	}
}

// A whole broker: a workload joins a group of a directory and of a SaaS product on the
// command line, through a crash of the broker and an outage of the directory.
func TestMembershipsEndToEnd(t *testing.T) {
	t.Parallel()
	dir, system := startSlapd(t), startScimmy(t, []string{"triage"}, []string{"Sales"})
	s := startSPIRE(t, "acme.test")
	w := newBroker(t, s)
	w.write(t, "scim-token", scimToken)
	members := `members: {accounts: {"spiffe://acme.test/agent/triage": triage}}, compare_every: 10s`
	w.issuers = fmt.Sprintf(`
  directory:
    ldap: {url: "%s", ca_file: "%s", bind: {dn: "%s", password_file: "%s"}, base: "dc=acme,dc=test", people_base: "ou=people,dc=acme,dc=test", %s}
  crm:
    scim: {url: "%s", token_file: scim-token, allow_private: true, %s}
`, dir.url(), dir.path("cert.pem"), slapdBroker, dir.path("password"), members, system.url(), members)
	w.entitlements = fmt.Sprintf(`
  admins: {issuer: directory, ldap: {group: "%[1]s"}, max_ttl: 24h}
  admins-too: {issuer: directory, ldap: {group: "%[1]s"}, max_ttl: 24h}
  sales: {issuer: crm, system: crm, scim: {group: Sales}, max_ttl: 24h}
`, groupDN("admins"))
	w.configure(t, []string{s.domain}, agentsPolicy)
	w.start(t)
	triage := copyBinary(t, w.bin, "triage")
	s.register(t, "/agent/triage", triage)
	join := func(entitlement string, args ...string) (c api.Credential) {
		t.Helper()
		eventually(t, "the membership of "+entitlement, time.Minute, func() error {
			out, errs, code := w.cli(triage, append([]string{"request", entitlement, "--why", "incident", "-o", "json"}, args...)...)
			if code != 0 {
				return fmt.Errorf("exit code %d: %s", code, errs)
			}
			return json.Unmarshal([]byte(out), &c)
		})
		return c
	}
	wantMember := func(when string, want bool) {
		t.Helper()
		eventually(t, when, time.Minute, func() error {
			if got := dir.members(t, "admins", "member"); slices.Equal(got, []string{personDN("triage")}) != want {
				return fmt.Errorf("members: %q", got)
			}
			return nil
		})
	}
	admin := func(args ...string) string {
		out, errs, code := w.cli(triage, append(args, "--admin-socket", filepath.Join(w.dir, "admin.sock"))...)
		if code != 0 {
			t.Fatalf("broker %q: exit code %d: %s", args, code, errs)
		}
		return out
	}

	sales := join("sales")
	if sales.Type != api.TypeMembership || sales.Membership == nil || *sales.Membership != (api.Joined{System: "crm", Group: "Sales"}) || sales.Secret != nil {
		t.Errorf("sales: got %+v", sales)
	}
	if got := system.members(t, "Sales"); !slices.Equal(got, []string{"u-triage"}) {
		t.Errorf("members of Sales: got %q", got)
	}
	if _, errs, code := w.cli(triage, "return", sales.Lease); code != 0 || len(system.members(t, "Sales")) != 0 {
		t.Errorf("returned: exit code %d: %s; members %q", code, errs, system.members(t, "Sales"))
	}

	// Two entitlements of one group overlap, and the broker dies between.
	first := join("admins")
	short := join("admins-too", "--ttl", "20s")
	wantMember("the member", true)
	w.broker.kill()
	w.start(t)
	if _, errs, code := w.cli(triage, "return", first.Lease); code != 0 {
		t.Errorf("returned: exit code %d: %s", code, errs)
	}
	if time.Now().Before(short.ExpiresAt) {
		wantMember("the member of the second lease", true)
	}
	// The second lease expires while the directory is down.
	dir.server.stop()
	eventually(t, "an end that fails", 2*time.Minute, func() error {
		if out := admin("leases", "--live"); !strings.Contains(out, short.Lease) || !strings.Contains(out, api.LeaseRevoking) {
			return fmt.Errorf("live leases:\n%s", out)
		}
		return nil
	})
	dir.start(t)
	wantMember("the removal once the directory is back", false)

	// Someone adds the member again: the comparison reports it, a person accepts it.
	dir.change(t, "add", "admins", "member", personDN("triage"))
	var id string
	eventually(t, "the difference", time.Minute, func() error {
		out := admin("memberships", "--differs", "-o", "json")
		var page api.MembershipPage
		if err := json.Unmarshal([]byte(out), &page); err != nil || len(page.Memberships) != 1 || page.Memberships[0].Difference != api.AddedAgain {
			return fmt.Errorf("differences: %s", out)
		}
		id = page.Memberships[0].ID
		return nil
	})
	if out := admin("memberships"); !strings.Contains(out, "added-again") {
		t.Errorf("memberships:\n%s", out)
	}
	admin("memberships", "accept", id, "--why", "it is an administrator now")
	existing := join("admins")
	if _, errs, code := w.cli(triage, "return", existing.Lease); code != 0 {
		t.Errorf("returned: exit code %d: %s", code, errs)
	}
	wantMember("a membership that existed before", true)
	if out, err := exec.Command("grep", "-c", scimToken, filepath.Join(w.dir, "broker.db")).Output(); err == nil {
		t.Errorf("the token is in the database: %s", out)
	}
}
