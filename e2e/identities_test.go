package e2e

import (
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// testIdentities finds an agent in the inventory and opens its page, with the keyboard
// alone.
func testIdentities(t *testing.T, o *office) {
	o.writePeople(t, staffOf("Dan"))
	r := o.fileRequest(t, "--scope", "tickets:read", "--why", "to be in the inventory")
	o.collect(t, r.ID, 0)
	ctx := o.browser(t)
	o.logIn(t, ctx, "dan", "/ui/identities")
	dan := &typist{t, ctx}
	do(t, ctx, "the inventory", chromedp.WaitVisible(css(`.identities`)))
	dan.press("/")
	if s := dan.at(); !strings.HasPrefix(s.Name, "Search") {
		t.Fatalf("/ leads to %q, want Search", s.Name)
	}
	dan.press("triage support")
	dan.press(kb.Enter)
	do(t, ctx, "the search", chromedp.WaitVisible(css(`a[href="/ui/identities"]:not([aria-current])`))) // Clear
	rows, err := chromedp.Run(ctx, chromedp.Evaluate[string](`[...document.querySelectorAll(".identities tbody th a")].map(a => a.innerText).join()`))
	if err != nil || rows != "acme.test/agent/triage" {
		t.Fatalf("the search finds %q, %v", rows, err)
	}
	dan.skipToContent()
	dan.tabTo("acme.test/agent/triage")
	dan.press(kb.Enter)
	do(t, ctx, "the agent", chromedp.WaitVisible(css(`.numbers`)))
	page, err := chromedp.Run(ctx, chromedp.Text(css(`main`)))
	for _, shows := range []string{"spiffe://acme.test/agent/triage", "login/ana", "SPIFFE certificate (X.509-SVID)", "agents-read", "tickets:read", "127.0.0.1"} {
		if err != nil || !strings.Contains(page, shows) {
			t.Errorf("the page of the agent lacks %q: %v\n%s", shows, err, page)
		}
	}
	ben := o.browser(t)
	o.logIn(t, ben, "ben", "/ui/identities")
	refusal, err := chromedp.Run(ben, chromedp.Text(css(`main`)))
	if err != nil || !strings.Contains(refusal, "it needs the action audit or operate") {
		t.Errorf("a person who may not see the inventory: %v\n%s", err, refusal)
	}
}
