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

// takeScreenshots takes a picture of every page, in both themes, on a desk and
// on a phone.
func takeScreenshots(t *testing.T, o *office) {
	o.hire(t, staff("Dan"))
	ana, ben, dan := o.browser(t), o.browser(t), o.browser(t)
	o.logsIn(t, ana, "ana", "/ui/")
	o.logsIn(t, ben, "ben", "/ui/")
	o.logsIn(t, dan, "dan", "/ui/")
	o.shoot(t, ana, "inbox-empty", "/ui/")
	o.shoot(t, ana, "access-none", "/ui/access")
	o.shoot(t, dan, "leases-none", "/ui/leases?holder=spiffe://acme.test/nobody")
	o.shootDecisions(t, ben, dan)
	o.shootOwn(t, ben)
	o.shootLogins(t, ben)
	o.shootStops(t, ben, dan)
}

// shootDecisions shows what approvers, reviewers and auditors look at.
func (o *office) shootDecisions(t *testing.T, ben, dan context.Context) {
	t.Helper()
	glass := t.TempDir()
	o.terminalLogin(t, glass, "ben")
	broken, errs, code := o.inTerminal(glass, "request", "tickets-api", "--scope", "tickets:close", "--break-glass", "--why", "the till is on fire", "-o", "json", "--file-only")
	if code != 0 {
		t.Fatalf("breaking the glass: %s%s", broken, errs)
	}
	if out, errs, code := o.inTerminal(glass, "request", "tickets-api", "--scope", "tickets:read", "--why", "reading up on INC-4711", "-o", "json"); code != 0 {
		t.Fatalf("asking: %s%s", out, errs)
	}
	pending := o.asks(t, "--scope", "tickets:close", "--scope", "tickets:read", "--ticket", "INC-4711", "--why", "The customer filed INC-4711 three times.\nTwo of them are duplicates: I want to close INC-4712 and INC-4713.")
	o.asks(t, "--scope", "tickets:close", "--why", "duplicate of INC-4720")
	signed := o.asks(t, "--scope", "tickets:purge", "--why", "what was purged comes back")
	o.shoot(t, ben, "inbox", "/ui/")
	o.shoot(t, dan, "inbox-review", "/ui/")
	o.shoot(t, dan, "request-review", "/ui/requests/"+idOf(t, broken))
	o.shoot(t, ben, "request", "/ui/requests/"+pending.ID, chromedp.Click(css(`summary`)))
	o.shoot(t, ben, "request-signed", "/ui/requests/"+signed.ID)
	do(t, ben, "approving", chromedp.Navigate(o.web+"/ui/requests/"+pending.ID), chromedp.Click(css(`button[value="approve"]`)), chromedp.WaitVisible(css(`.done`)))
	lease := leaseOf(t, o.collects(t, pending.ID, 0))
	o.shoot(t, ben, "request-approved", "/ui/requests/"+pending.ID+"?done=approve")
	o.shoot(t, dan, "leases", "/ui/leases", chromedp.Click(css(`td summary`)))
	if _, errs, code := o.asAgent("return", lease, "--why", "both are closed"); code != 0 {
		t.Fatalf("giving back: %s", errs)
	}
	o.shoot(t, dan, "leases-all", "/ui/leases?all=1")
	o.shoot(t, dan, "timeline", "/ui/requests/"+pending.ID+"/log")
	do(t, dan, "the first record", chromedp.Click(css(`a.index`)), chromedp.WaitVisible(css(`pre`)))
	record, err := chromedp.Run(dan, chromedp.Location())
	if err != nil {
		t.Fatal(err)
	}
	o.shoot(t, dan, "record", strings.TrimPrefix(record, o.web))
	o.shoot(t, dan, "audit", "/ui/audit")
}

// idOf reads which request was filed.
func idOf(t *testing.T, printed string) string {
	t.Helper()
	_, id, found := strings.Cut(printed, `"id": "`)
	id, _, _ = strings.Cut(id, `"`)
	if !found {
		t.Fatalf("no request: %s", printed)
	}
	return id
}

// shootOwn shows what somebody has, and may ask for.
func (o *office) shootOwn(t *testing.T, ben context.Context) {
	t.Helper()
	o.shoot(t, ben, "access", "/ui/access")
	o.shoot(t, ben, "entitlements", "/ui/entitlements")
	o.shoot(t, ben, "ask", "/ui/entitlements/tickets-api", chromedp.Click(css(`summary`)))
	o.shoot(t, ben, "ask-refused", "/ui/entitlements/tickets-api", chromedp.SendKeys(css(`input[name="ttl"]`), "soon"), chromedp.Click(css(`button.go`)), chromedp.WaitVisible(css(`.failed`)))
	o.shoot(t, ben, "passkeys-none", "/ui/passkeys")
}

// shootLogins shows how somebody lets a terminal in.
func (o *office) shootLogins(t *testing.T, ben context.Context) {
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
	o.shoot(t, ben, "device", "/ui/device")
	o.shoot(t, ben, "device-wrong", "/ui/device?code=BCDF-GHJK")
	o.shoot(t, ben, "device-code", "/ui/device?code="+terminal.UserCode)
	o.shoot(t, ben, "terminal", "/ui/terminal?port=50000&state=s&challenge="+strings.Repeat("A", 43))
	stranger := o.browser(t)
	o.shoot(t, stranger, "logged-out", "/ui/login?out")
	o.shoot(t, stranger, "login-failed", "/ui/login?failed=expired")
}

// shootStops shows the kill switch, and what people are told who may not.
func (o *office) shootStops(t *testing.T, ben, dan context.Context) {
	t.Helper()
	o.shoot(t, dan, "kill", "/ui/leases", chromedp.SetValue(css(`.kill input[name="name"]`), "spiffe://acme.test/agent/triage"),
		chromedp.SetValue(css(`.kill input[name="reason"]`), "it closes what it should not"),
		chromedp.Submit(css(`.kill button`)), chromedp.WaitVisible(css(`button[value="kill"]`)))
	o.shoot(t, ben, "not-found", "/ui/requests/req_nothing")
	o.shoot(t, ben, "forbidden", "/ui/leases", func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
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

// phone is how wide its screen is.
const phone = 390

// shoot takes pictures of a page, in both themes, on a desk and on a phone, and
// wants each to fit its screen.
func (o *office) shoot(t *testing.T, ctx context.Context, name, path string, before ...chromedp.Action[chromedp.Void]) {
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
				t.Errorf("%s on a %s is %d wide, on a screen of %d (%v)", name, device, wide, width, err)
			}
		}
	}
}
