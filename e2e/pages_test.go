package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// css selects an element. The library would look for a plain string in the text
// of a page as well, and a hash in base64 may well say "h1".
type css = chromedp.CSS

// do has a browser do something.
func do(t *testing.T, ctx context.Context, what string, actions ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	short, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := chromedp.Do(short, actions...); err != nil {
		page, _ := chromedp.Run(ctx, chromedp.Evaluate[string](`document.documentElement.outerHTML`))
		t.Fatalf("%s: %v\n%s", what, err, page)
	}
}

// command sends a command of the DevTools protocol.
func command[P any](c cdp.Command[P, cdp.Empty], params P) chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, c, params)
		return chromedp.Void{}, err
	}
}

// testPages has people decide in the pages: the inbox shows what comes without
// being asked, and two clicks are enough.
func testPages(t *testing.T, o *office) {
	ben := o.browser(t)
	o.logsIn(t, ben, "ben", "/ui/")
	do(t, ben, "an empty inbox", chromedp.WaitVisible(css(`.empty`)))
	r := o.asks(t, "--scope", "tickets:close", "--scope", "tickets:read", "--why", "duplicates of INC-4711")
	link := fmt.Sprintf(`a[href="/ui/requests/%s"]`, r.ID)
	do(t, ben, "the live inbox", chromedp.WaitVisible(css(link)))
	do(t, ben, "approving",
		chromedp.Click(css(link)), chromedp.WaitVisible(css(`button[value="approve"]`)),
		chromedp.SendKeys(css(`#comment`), "as agreed"), chromedp.Click(css(`button[value="approve"]`)),
		chromedp.WaitVisible(css(`.done`)))
	o.collects(t, r.ID, 0)

	r = o.asks(t, "--scope", "tickets:close", "--scope", "tickets:read", "--why", "more duplicates")
	do(t, ben, "granting less",
		chromedp.Navigate(o.web+"/ui/requests/"+r.ID), chromedp.Click(css(`summary`)), chromedp.WaitVisible(css(`input[name="ttl"]`)),
		chromedp.Click(css(`input[name="scope.tickets:close"]`)),
		chromedp.SetValue(css(`input[name="ttl"]`), "2m"),
		chromedp.Click(css(`button[value="approve"]`)), chromedp.WaitVisible(css(`.done`)))
	if out := o.collects(t, r.ID, 0); !strings.Contains(out, `"tickets:read"`) || strings.Contains(out, `"tickets:close"`) {
		t.Errorf("what was granted: %s", out)
	}

	r = o.asks(t, "--scope", "tickets:close", "--why", "no good reason")
	do(t, ben, "denying by the keyboard alone",
		chromedp.Navigate(o.web+"/ui/requests/"+r.ID), chromedp.Focus(css(`button[value="deny"]`)), chromedp.KeyEvent(kb.Enter),
		chromedp.WaitVisible(css(`.done`)))
	o.collects(t, r.ID, 3)
	testStalePage(t, o, ben)
}

// collects has the agent collect, and gives what it is told.
func (o *office) collects(t *testing.T, id string, want int) string {
	t.Helper()
	out, errs, code := o.asAgent("collect", id, "-o", "json")
	if code != want {
		t.Errorf("collecting %s: %d %s%s", id, code, out, errs)
	}
	return out
}

// testStalePage has the agent withdraw while somebody looks: the page says so,
// and what is sent from it is refused.
func testStalePage(t *testing.T, o *office, ben context.Context) {
	r := o.asks(t, "--scope", "tickets:close", "--why", "second thoughts")
	do(t, ben, "looking", chromedp.Navigate(o.web+"/ui/requests/"+r.ID), chromedp.WaitVisible(css(`button[value="approve"]`)))
	if _, errs, code := o.asAgent("withdraw", r.ID); code != 0 {
		t.Fatal(errs)
	}
	do(t, ben, "being told", chromedp.WaitVisible(css(`.changed`)))
	do(t, ben, "approving all the same", chromedp.Click(css(`button[value="approve"]`)), chromedp.WaitVisible(css(`.failed`)))
}

// hostile is what an agent may write wherever it may write.
const hostile = `"'><script>window.pwned=1</script><img src=x onerror="window.pwned=1"><a href="javascript:window.pwned=1">look</a>{{.}}` + "</textarea></title>"

// testHostileTexts has an agent, and a person by their name, try to run code in
// the browsers of those who look.
func testHostileTexts(t *testing.T, o *office) {
	out, errs, code := o.asAgent("request", "notes", "--file-only", "--why", hostile, "--param", "note="+hostile, "--ticket", `"><svg onload=window.pwned=1>`, "-o", "json")
	if code != 0 {
		t.Fatalf("asking: %s", errs)
	}
	_, id, _ := strings.Cut(out, `"id": "`)
	id, _, _ = strings.Cut(id, `"`)
	ben, dan := o.browser(t), o.browser(t)
	o.logsIn(t, ben, "ben", "/ui/")
	o.logsIn(t, dan, "dan", "/ui/")
	look := func(who string, ctx context.Context, path, shows string) {
		t.Helper()
		do(t, ctx, who+" looks at "+path, chromedp.Navigate(o.web+path), chromedp.WaitVisible(css(`h1`)))
		text, err := chromedp.Run(ctx, chromedp.Text(css(`body`)))
		if err != nil || !strings.Contains(text, shows) {
			t.Errorf("%s at %s does not see %q: %v\n%s", who, path, shows, err, text)
		}
		if pwned, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`"pwned" in window || document.querySelectorAll("main script, main img, main svg, a[href^=javascript]").length > 0`)); err != nil || pwned {
			t.Errorf("%s at %s: code of the agent's ran, or stands in the page (%v)", who, path, err)
		}
	}
	look("ben", ben, "/ui/", "<script>")
	look("ben", ben, "/ui/requests/"+id, `<img src=x onerror="window.pwned=1">`)
	do(t, ben, "ben comments", chromedp.SendKeys(css(`#comment`), hostile), chromedp.Click(css(`button[value="approve"]`)), chromedp.WaitVisible(css(`.done`)))
	look("dan", dan, "/ui/requests/"+id, "<script>")
	look("dan", dan, "/ui/requests/"+id+"/log", "request approved")
	look("dan", dan, "/ui/audit", "notes")
	look("dan", dan, "/ui/leases?holder="+`"><script>window.pwned=1</script>`, "no live leases")
}

// takeScreenshots takes a picture of every page, in both themes, on a desk and
// on a phone.
func takeScreenshots(t *testing.T, o *office) {
	glass := t.TempDir()
	o.terminalLogin(t, glass, "ben")
	if out, errs, code := o.inTerminal(glass, "request", "tickets-api", "--scope", "tickets:close", "--break-glass", "--why", "the till is on fire", "--file-only"); code != 0 {
		t.Fatalf("breaking the glass: %s%s", out, errs)
	}
	if out, errs, code := o.inTerminal(glass, "request", "tickets-api", "--scope", "tickets:read", "--why", "reading up on INC-4711", "-o", "json"); code != 0 {
		t.Fatalf("asking: %s%s", out, errs)
	}
	pending := o.asks(t, "--scope", "tickets:close", "--scope", "tickets:read", "--ticket", "INC-4711", "--why", "The customer filed INC-4711 three times.\nTwo of them are duplicates: I want to close INC-4712 and INC-4713.")
	o.asks(t, "--scope", "tickets:close", "--why", "duplicate of INC-4720")
	out, errs, code := o.asAgent("request", "tickets-api", "--scope", "tickets:read", "--why", "triage", "-o", "json")
	if code != 0 {
		t.Fatalf("asking: %s%s", out, errs)
	}
	ben, dan := o.browser(t), o.browser(t)
	o.logsIn(t, ben, "ben", "/ui/")
	o.logsIn(t, dan, "dan", "/ui/")
	shoot := func(ctx context.Context, name, path string, before ...chromedp.Action[chromedp.Void]) {
		t.Helper()
		o.shoot(t, ctx, name, path, before...)
	}
	shoot(ben, "inbox", "/ui/")
	shoot(dan, "inbox-review", "/ui/")
	shoot(ben, "request", "/ui/requests/"+pending.ID)
	signed := o.asks(t, "--scope", "tickets:purge", "--why", "what was purged comes back")
	shoot(ben, "request-signed", "/ui/requests/"+signed.ID)
	shoot(ben, "access", "/ui/access")
	shoot(ben, "entitlements", "/ui/entitlements")
	shoot(ben, "ask", "/ui/entitlements/tickets-api")
	shoot(dan, "leases", "/ui/leases")
	shoot(dan, "timeline", "/ui/requests/"+pending.ID+"/log")
	shoot(dan, "record", "/ui/audit/3")
	shoot(dan, "audit", "/ui/audit")
	shoot(ben, "error", "/ui/requests/req_nothing")
	shoot(ben, "device", "/ui/device")
	shoot(o.browser(t), "logged-out", "/ui/login?out")
	shoot(dan, "kill", "/ui/leases", chromedp.SetValue(css(`.kill input[name="name"]`), "spiffe://acme.test/agent/triage"),
		chromedp.SetValue(css(`.kill input[name="reason"]`), "it closes what it should not"),
		chromedp.Submit(css(`.kill button`)), chromedp.WaitVisible(css(`button[value="kill"]`)))
}

// shoot takes pictures of a page, in both themes, on a desk and on a phone, and
// wants each to fit its screen.
func (o *office) shoot(t *testing.T, ctx context.Context, name, path string, before ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	for _, theme := range []string{"light", "dark"} {
		for device, width := range map[string]int64{"desk": 1280, "phone": 390} {
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
