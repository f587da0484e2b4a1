package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"accessbroker.internal/api"
)

// takeScreenshots takes screenshots of every page, in both themes, on a desktop and
// on a phone.
func takeScreenshots(t *testing.T, o *office) {
	o.writePeople(t, staffOf("Dan"))
	ana, ben, dan := o.browser(t), o.browser(t), o.browser(t)
	o.logIn(t, ana, "ana", "/ui/")
	o.logIn(t, ben, "ben", "/ui/")
	o.logIn(t, dan, "dan", "/ui/")
	o.screenshot(t, ana, "inbox-empty", "/ui/")
	o.screenshot(t, ana, "access-none", "/ui/access")
	o.screenshot(t, dan, "leases-none", "/ui/leases?holder=spiffe://acme.test/nobody")
	o.screenshotDecisions(t, ben, dan)
	o.screenshotOwnPages(t, ben)
	o.screenshotLogins(t, ben)
	o.screenshotKillSwitch(t, ben, dan)
}

// screenshotDecisions shows the pages of approvers, reviewers and auditors.
func (o *office) screenshotDecisions(t testing.TB, ben, dan context.Context) {
	t.Helper()
	glass := t.TempDir()
	o.terminalLogin(t, glass, "ben")
	broken, errs, code := o.personCLI(glass, "request", "tickets-api", "--scope", "tickets:close", "--break-glass", "--why", "the till is on fire", "-o", "json", "--file-only")
	if code != 0 {
		t.Fatalf("requesting break-glass access: %s%s", broken, errs)
	}
	if out, errs, code := o.personCLI(glass, "request", "tickets-api", "--scope", "tickets:read", "--why", "reading up on INC-4711", "-o", "json"); code != 0 {
		t.Fatalf("requesting: %s%s", out, errs)
	}
	pending := o.fileRequest(t, "--scope", "tickets:close", "--scope", "tickets:read", "--ticket", "INC-4711", "--why", "The customer filed INC-4711 three times.\nTwo of them are duplicates: I want to close INC-4712 and INC-4713.")
	o.fileRequest(t, "--scope", "tickets:close", "--why", "duplicate of INC-4720")
	signed := o.fileRequest(t, "--scope", "tickets:purge", "--why", "the purged ticket came back")
	o.screenshot(t, ben, "inbox", "/ui/")
	o.screenshot(t, dan, "inbox-review", "/ui/")
	o.screenshot(t, dan, "request-review", "/ui/requests/"+idOf(t, broken))
	o.screenshot(t, ben, "request", "/ui/requests/"+pending.ID, chromedp.Click(css(`.decide summary`)))
	o.screenshot(t, ben, "request-signed", "/ui/requests/"+signed.ID)
	do(t, ben, "approving", chromedp.Navigate(o.web+"/ui/requests/"+pending.ID), chromedp.Click(css(`button[value="approve"]`)), chromedp.WaitVisible(css(`.done`)))
	lease := leaseOf(t, o.collect(t, pending.ID, 0))
	o.screenshot(t, ben, "request-approved", "/ui/requests/"+pending.ID+"?done=approve")
	o.screenshot(t, dan, "leases", "/ui/leases", chromedp.Click(css(`td summary`)))
	if _, errs, code := o.agentCLI("return", lease, "--why", "both are closed"); code != 0 {
		t.Fatalf("returning: %s", errs)
	}
	o.screenshot(t, dan, "leases-all", "/ui/leases?all=1")
	o.screenshot(t, dan, "timeline", "/ui/requests/"+pending.ID+"/log")
	do(t, dan, "the first record", chromedp.Click(css(`a.index`)), chromedp.WaitVisible(css(`pre`)))
	record, err := chromedp.Run(dan, chromedp.Location())
	if err != nil {
		t.Fatal(err)
	}
	o.screenshot(t, dan, "record", strings.TrimPrefix(record, o.web))
	o.screenshot(t, dan, "audit", "/ui/audit")
	o.screenshot(t, dan, "audit-logins", "/ui/audit?kind=session")
	o.screenshot(t, dan, "identities", "/ui/identities")
	o.screenshot(t, dan, "identities-problems", "/ui/identities?problem=any&kind=agent")
	o.screenshot(t, dan, "identity", "/ui/identity?id=spiffe%3A%2F%2Facme.test%2Fagent%2Ftriage")
	o.screenshot(t, dan, "identity-person", "/ui/identity?id=login%2Fben")
	for _, framework := range []string{"owasp-nhi-2025", "nist-csf-1.1"} {
		o.screenshot(t, dan, "evidence-"+framework, "/ui/evidence?framework="+framework)
	}
	for _, period := range []string{"24h", "7d", "30d"} {
		o.screenshot(t, dan, "overview-"+period, "/ui/overview?period="+period)
	}
}

// idOf returns the ID of the request that was printed.
func idOf(t testing.TB, printed string) string {
	t.Helper()
	_, id, found := strings.Cut(printed, `"id": "`)
	id, _, _ = strings.Cut(id, `"`)
	if !found {
		t.Fatalf("no request: %s", printed)
	}
	return id
}

// screenshotOwnPages shows a person's own access and what they may request.
func (o *office) screenshotOwnPages(t testing.TB, ben context.Context) {
	t.Helper()
	o.screenshot(t, ben, "access", "/ui/access")
	o.screenshot(t, ben, "entitlements", "/ui/entitlements")
	o.screenshot(t, ben, "ask", "/ui/entitlements/tickets-api", chromedp.Click(css(`main summary`)))
	o.screenshot(t, ben, "ask-refused", "/ui/entitlements/tickets-api", chromedp.SendKeys(css(`input[name="ttl"]`), "soon"), chromedp.Click(css(`button.go`)), chromedp.WaitVisible(css(`.failed`)))
	o.screenshot(t, ben, "passkeys-none", "/ui/passkeys")
}

// screenshotLogins shows how a person logs a terminal in.
func (o *office) screenshotLogins(t testing.TB, ben context.Context) {
	t.Helper()
	trusted := x509.NewCertPool()
	text, err := os.ReadFile(filepath.Join(o.dir, "web-ca.pem"))
	if err != nil || !trusted.AppendCertsFromPEM(text) {
		t.Fatalf("the certificate of the pages: %v", err)
	}
	terminal, err := (&api.Client{BaseURL: o.web, HTTP: client(t, &tls.Config{RootCAs: trusted}, true)}).BeginDevice(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o.screenshot(t, ben, "device", "/ui/device")
	o.screenshot(t, ben, "device-wrong", "/ui/device?code=BCDF-GHJK")
	o.screenshot(t, ben, "device-code", "/ui/device?code="+terminal.UserCode)
	o.screenshot(t, ben, "terminal", "/ui/terminal?port=50000&state=s&challenge="+strings.Repeat("A", 43))
	stranger := o.browser(t)
	o.screenshot(t, stranger, "logged-out", "/ui/login?out")
	o.screenshot(t, stranger, "login-failed", "/ui/login?failed=expired")
}

// screenshotKillSwitch shows the kill switch, and the errors for people who may
// not use it.
func (o *office) screenshotKillSwitch(t testing.TB, ben, dan context.Context) {
	t.Helper()
	o.screenshot(t, dan, "kill", "/ui/kill", chromedp.SetValue(css(`.kill input[name="name"]`), "spiffe://acme.test/agent/triage"),
		chromedp.SetValue(css(`.kill input[name="reason"]`), "it closes what it should not"),
		chromedp.Submit(css(`.kill button`)), chromedp.WaitVisible(css(`button[value="kill"]`)))
	o.screenshot(t, ben, "not-found", "/ui/requests/req_nothing")
	o.screenshot(t, ben, "forbidden", "/ui/leases", func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := chromedp.Evaluate[bool](`(() => {
			const f = document.createElement("form");
			f.method = "post"; f.action = "/ui/kill";
			for (const [name, value] of [["kind", "issuer"], ["name", "tickets"], ["reason", "no reason"]]) {
				const i = document.createElement("input");
				i.type = "hidden"; i.name = name; i.value = value;
				f.append(i);
			}
			document.body.append(f);
			f.submit();
			return true;
		})()`)(ctx, target)
		return chromedp.Void{}, err
	}, chromedp.WaitVisible(css(`.failed`)))
}

// phone is the width of a phone's screen, in CSS pixels.
const phone = 390

// screenshot takes screenshots of a page, in both themes, on a desktop and on a
// phone, and checks that each fits the width of its screen.
func (o *office) screenshot(t testing.TB, ctx context.Context, name, path string, before ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	for _, theme := range []string{"light", "dark"} {
		for device, width := range map[string]int64{"desk": 1280, "phone": phone} {
			do(t, ctx, "preparing "+name,
				command(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: 844, DeviceScaleFactor: 1, Mobile: device == "phone"}),
				command(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: theme}}}),
				chromedp.Navigate(o.web+path), chromedp.WaitVisible(css("h1")))
			do(t, ctx, "preparing "+name, before...)
			picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			file := filepath.Join(t.ArtifactDir(), fmt.Sprintf("%s-%s-%s.png", name, device, theme))
			if err := os.WriteFile(file, picture, 0o600); err != nil {
				t.Fatal(err)
			}
			if wide, err := chromedp.Run(ctx, chromedp.Evaluate[int64](`document.documentElement.scrollWidth`)); err != nil || wide > width {
				t.Errorf("%s on a %s: got width %d, want at most %d (%v)", name, device, wide, width, err)
			}
		}
	}
}
