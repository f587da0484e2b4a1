package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"accessbroker.internal/api"
)

// Workloads call one listener. Browsers and people's terminals call another one,
// under the host name that passkeys are bound to.
const officeFile = `
server:
  external_url: %[1]s
  listeners:
    - {listen: "%[2]s", tls: {svid: true}, client_certs: optional, serve: [api, oauth, log]}
    - {listen: "%[3]s", tls: {cert: web.pem, key: web.key}, client_certs: off, serve: [ui, api, oauth, log]}
  admin_socket: admin.sock
  seal_keys: [{file: seal.key}]
  drain: {delay: 0s}
attest:
  trust_domain: acme.test
  workload_api: %[4]s
  workloads:
    - {under: "spiffe://acme.test/agent", kind: agent, team: support, accountable: [login/ana]}
  people:
    login: {issuer: "%[5]s", client_id: broker, client_secret_file: client.secret, groups_claim: groups, ca_file: web-ca.pem}
store: sqlite:broker.db
policies: policies
issuers:
  tickets: {token: {audience: "https://tickets.acme.test"}}
entitlements:
  notes: {issuer: tickets, scopes: [notes:write], parameters: {note: {pattern: "(?s).*", max_length: 1000, lines: true}}, max_ttl: 30m, owner: support}
  tickets-api: {issuer: tickets, scopes: [tickets:close, tickets:purge, tickets:read], default_ttl: 10m, max_ttl: 15m, owner: support}
`

const officePolicies = `
@id("agents-read")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource)
when { ["tickets:read"].containsAll(context.scopes) };

@id("close-needs-people")
@approval("1 of support")
@justification("required")
@reason("closing a ticket needs approval by the support team")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource)
when { context.scopes.contains("tickets:close") };

@id("purging-is-signed")
@approval("1 of support")
@signed("required")
@reason("a purged ticket cannot be restored")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource)
when { context.scopes.contains("tickets:purge") };

@id("agents-break-the-glass")
@break_glass("security")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"tickets-api")
when { context.scopes.contains("tickets:purge") };

@id("notes-need-people")
@approval("1 of support")
@reason("notes are <b>read</b> by people")
permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"notes");

@id("support-reads")
@justification("required")
permit (principal in Group::"support", action == Action::"request", resource == Entitlement::"tickets-api")
when { ["tickets:read"].containsAll(context.scopes) };

@id("support-breaks-the-glass")
@justification("required")
@break_glass("security")
@review_within("4h")
permit (principal in Group::"support", action == Action::"request", resource == Entitlement::"tickets-api");

@id("security-sees")
permit (principal in Group::"security", action in [Action::"view", Action::"revoke"], resource);
@id("security-stops")
permit (principal in Group::"security", action in [Action::"audit", Action::"block"], resource);
`

const officeGroups = `
support: {members: [login/ben], claims: [{provider: login, group: support}], notify: ["webhook:support", "mail:support"]}
security: {members: [login/dan]}
`

// An office is a broker whose people log in through a real OpenID provider.
type office struct {
	*world
	web       string // the URL of the pages
	provider  *process
	agent     string
	receivers *receivers
}

// A person is a user of the provider. The password is the name.
type person struct {
	Name   string   `json:"name"`
	Groups []string `json:"groups"`
}

func startOffice(t testing.TB, s *spire, bin string) *office {
	t.Helper()
	o := &office{world: newBrokerOf(t, s, bin), receivers: startReceivers(t)}
	webPort, loginPort := freePort(t), freePort(t)
	o.web = fmt.Sprintf("https://localhost:%d", webPort)
	issuer := fmt.Sprintf("https://localhost:%d/", loginPort)
	at := func(name string) string { return filepath.Join(o.dir, name) }
	loopbackTLS(t, at("web-ca.pem"), at("web.pem"), at("web.key"))
	o.write(t, "client.secret", "only-in-tests")
	o.write(t, "hook.secret", hookSecret)
	o.writePeople(t, staffOf(hostileDan))
	var err error
	o.provider, err = start(t, "the OpenID provider", filepath.Join(built(t, "op"), "op"),
		"-listen", fmt.Sprintf("localhost:%d", loginPort), "-issuer", issuer, "-cert", at("web.pem"), "-key", at("web.key"),
		"-people", at("people.json"), "-client", "broker", "-secret", "only-in-tests", "-redirect", o.web+"/ui/login/callback")
	if err != nil {
		t.Fatal(err)
	}
	o.write(t, "policies/all.cedar", officePolicies)
	o.write(t, "policies/groups.yaml", officeGroups)
	o.write(t, "broker.yaml", fmt.Sprintf(officeFile, o.web, o.listen, fmt.Sprintf("localhost:%d", webPort), s.socket(), issuer)+o.receivers.file())
	o.start(t)
	o.agent = copyBinary(t, o.bin, "agent")
	s.register(t, "/agent/triage", o.agent)
	eventually(t, "the agent's identity", time.Minute, func() error {
		if _, errs, code := o.agentCLI("whoami"); code != 0 {
			return fmt.Errorf("%s", errs)
		}
		return nil
	})
	return o
}

// hostileDan is a display name that tries to run code and to reorder text.
var hostileDan = "Dan \u202e<script>window.pwned=1</script>" + strings.Repeat("W", 60)

// staffOf returns the people of the provider. dan is the display name of dan.
func staffOf(dan string) map[string]person {
	return map[string]person{
		"ana": {Name: "Ana", Groups: []string{"support"}}, "ben": {Name: "Ben"}, "cleo": {Name: "Cleo", Groups: []string{"support"}}, "dan": {Name: dan},
	}
}

// writePeople writes the provider's people.
func (o *office) writePeople(t testing.TB, people map[string]person) {
	t.Helper()
	text, err := json.Marshal(people)
	if err != nil {
		t.Fatal(err)
	}
	o.write(t, "people.json", string(text))
}

// agentCLI runs a command as the agent. The external URL is for browsers.
func (o *office) agentCLI(args ...string) (stdout, stderr string, code int) {
	return o.cli(o.agent, append(args, "--server", "https://"+o.listen)...)
}

// fileRequest files a request as the agent and returns it.
func (o *office) fileRequest(t testing.TB, args ...string) api.Request {
	t.Helper()
	out, errs, code := o.agentCLI(append([]string{"request", "tickets-api", "--file-only", "-o", "json"}, args...)...)
	var r api.Request
	if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil {
		t.Fatalf("filing a request: %d %v %s", code, err, errs)
	}
	return r
}

// browser starts a Chromium with a profile of its own. Besides the web's
// authorities, it trusts the certificate of the tests.
func (o *office) browser(t testing.TB) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(installed(t, "chromium")), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("ignore-certificate-errors-spki-list", spkiOf(t, filepath.Join(o.dir, "web.pem"))),
		chromedp.UserDataDir(t.TempDir()))
	allocator, stop := chromedp.NewExecAllocator(t.Context(), options...)
	ctx, cancel := chromedp.NewContext(allocator)
	ctx, done := context.WithTimeout(ctx, 20*time.Minute)
	t.Cleanup(func() { done(); cancel(); stop() })
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil { // the browser ends with the context of its first action
		t.Fatal(err)
	}
	return ctx
}

// spkiOf returns the hash by which Chromium identifies the key of a certificate.
func spkiOf(t testing.TB, certFile string) string {
	t.Helper()
	text, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// logIn opens a page and logs in on the way.
func (o *office) logIn(t testing.TB, ctx context.Context, name, path string) {
	t.Helper()
	err := chromedp.Do(ctx,
		chromedp.Navigate(o.web+path),
		chromedp.WaitVisible(css(`input[name="username"]`)),
		chromedp.SendKeys(css(`input[name="username"]`), name),
		chromedp.SendKeys(css(`input[name="password"]`), name),
		chromedp.Submit(css(`input[name="password"]`)),
		chromedp.WaitVisible(css(`header a.brand`)),
	)
	where, asked := chromedp.Run(ctx, chromedp.Location())
	err = errors.Join(err, asked)
	if err != nil || !strings.HasPrefix(where, o.web+"/ui/") {
		t.Fatalf("%s logs in: %v, at %s\n%s", name, err, where, o.provider.out)
	}
}

// TestPeople logs people in through a real OpenID provider, in a real browser.
// They approve there and in the terminal.
func TestPeople(t *testing.T) {
	t.Parallel() // it mostly waits
	o := startOffice(t, spireOf(t), brokerBinary(t))
	t.Run("terminal", func(t *testing.T) { testTerminal(t, o) })
	t.Run("notifications", func(t *testing.T) { testNotifications(t, o) })
	t.Run("pages", func(t *testing.T) { testPages(t, o) })
	t.Run("keyboard", func(t *testing.T) { testKeyboard(t, o) })
	t.Run("identities", func(t *testing.T) { testIdentities(t, o) })
	t.Run("hostile texts", func(t *testing.T) { testHostileTexts(t, o) })
	t.Run("accessibility", func(t *testing.T) { testAccessibility(t, o) })
	t.Run("screenshots", func(t *testing.T) { takeScreenshots(t, o) })
}

// testTerminal logs a terminal in through the browser and approves in the
// terminal.
func testTerminal(t *testing.T, o *office) {
	r := o.fileRequest(t, "--scope", "tickets:close", "--why", "duplicates")
	if r.Status != api.StatusPending {
		t.Fatalf("the request is %s", r.Status)
	}
	home := t.TempDir()
	o.terminalLogin(t, home, "ben")
	if out, errs, code := o.personCLI(home, "whoami"); code != 0 || !strings.Contains(out, "login/ben") {
		t.Fatalf("whoami: %d %s %s", code, out, errs)
	}
	if info, err := os.Stat(filepath.Join(home, "access-broker", "session.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the session's file: %v %v", info, err)
	}
	out, errs, code := o.personCLI(home, "approve", r.ID, "--yes", "--comment", "they are", "--ttl", "5m")
	if code != 0 || !strings.Contains(out, "approved by") {
		t.Fatalf("approving: %d %s %s", code, out, errs)
	}
	if out, errs, code := o.agentCLI("collect", r.ID, "-o", "json"); code != 0 || !strings.Contains(out, `"token"`) {
		t.Errorf("collecting: %d %s %s", code, out, errs)
	}
	if _, errs, code := o.personCLI(home, "approve", r.ID, "--yes"); code == 0 || !strings.Contains(errs, "not_pending") {
		t.Errorf("approving a second time: %d %s", code, errs)
	}
	if _, errs, code := o.personCLI(home, "logout"); code != 0 {
		t.Errorf("logging out: %d %s", code, errs)
	}
	if _, errs, code := o.personCLI(home, "whoami"); code != 2 || !strings.Contains(errs, "broker login") {
		t.Errorf("after logging out: %d %s", code, errs)
	}
}

// personCLI runs a command as the person whose configuration is in home.
func (o *office) personCLI(home string, args ...string) (stdout, stderr string, code int) {
	cmd := exec.Command(o.bin, args...)
	cmd.Env = o.terminalEnv(home)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		return "", err.Error(), -1
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// terminalLogin runs "broker login" and follows its instructions in the browser.
func (o *office) terminalLogin(t testing.TB, home, name string) {
	t.Helper()
	p, err := startIn(o.terminalEnv(home), t, "broker login", o.bin, "login", "--no-browser")
	if err != nil {
		t.Fatal(err)
	}
	where := ""
	eventually(t, "the address of the login", time.Minute, func() error {
		_, after, found := strings.Cut(p.out.String(), o.web)
		line, _, whole := strings.Cut(after, "\n")
		if !found || !whole {
			return fmt.Errorf("broker login printed %q", p.out.String())
		}
		where = line
		return nil
	})
	ctx := o.browser(t)
	o.logIn(t, ctx, name, where)
	if err := chromedp.Do(ctx, chromedp.Click(css(`button[value="allow"]`))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the terminal's session", time.Minute, func() error {
		if !p.ended() || p.cmd.ProcessState.ExitCode() != 0 {
			return fmt.Errorf("broker login printed %s", p.out)
		}
		return nil
	})
}

// terminalEnv returns the environment of a person's terminal, which has no
// workload identity.
func (o *office) terminalEnv(home string) []string {
	return []string{"XDG_CONFIG_HOME=" + home, "PATH=/nowhere", "BROKER_URL=" + o.web, "BROKER_CA=" + filepath.Join(o.dir, "web-ca.pem")}
}
