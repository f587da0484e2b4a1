package e2e

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"accessbroker.internal/api"
	"accessbroker.internal/e2e/servers"
)

const officeReviews = `
standing:
  description: All standing access, once a quarter
  scope: {permits: [all], marks: [all], groups: [all]}
  reviewers: [owner]
  fallback: security
  deadline: 14d
`

// TestAccessReviews runs an access review in Chromium, with the keyboard alone: ben keeps
// several items at once on a desktop, and dan ends one on a phone.
func TestAccessReviews(t *testing.T) {
	t.Parallel() // it mostly waits
	o := startOffice(t, spireOf(t), brokerBinary(t))
	o.writePeople(t, staffOf("Dan"))
	socket := o.dir + "/admin.sock"
	o.write(t, "policies/reviews.yaml", officeReviews)
	if out, errs, code := o.cli(o.bin, "reload", "--admin-socket", socket); code != 0 {
		t.Fatalf("reload: %d %s%s", code, out, errs)
	}
	out, errs, code := o.cli(o.bin, "review", "start", "standing", "--admin-socket", socket, "-o", "json")
	var c api.Campaign
	if err := json.Unmarshal([]byte(out), &c); code != 0 || err != nil {
		t.Fatalf("starting: %d %v %s", code, err, errs)
	}
	t.Run("desktop", func(t *testing.T) { testBulkKeep(t, o, c) })
	t.Run("phone", func(t *testing.T) { testEndOnPhone(t, o, c) })
	t.Run("terminal", func(t *testing.T) { testReviewTerminal(t, o, c) })
	t.Run("accessibility", func(t *testing.T) { testReviewAccessibility(t, o, c) })
}

// testBulkKeep keeps two items at once. One of them waits for a second look.
func testBulkKeep(t *testing.T, o *office, c api.Campaign) {
	ctx := o.browser(t)
	o.logIn(t, ctx, "ben", "/ui/campaigns")
	ben := &typist{t, ctx}
	do(t, ctx, "the reviews", chromedp.WaitVisible(css(`a[href$="`+c.ID+`"]`)))
	ben.skipToContent()
	ben.tabTo("standing")
	ben.press(kb.Enter)
	do(t, ctx, "the review", chromedp.WaitVisible(css(`input[name^="keep."]`)))
	rows, err := chromedp.Run(ctx, chromedp.Evaluate[string](`[...document.querySelectorAll("tbody .who")].map(e => e.title).join()`))
	if err != nil || !strings.Contains(rows, "agents-read") || strings.Contains(rows, "support-reads") || strings.Contains(rows, "login/ben") {
		t.Fatalf("ben reviews what the group support does not use: got %q, %v", rows, err)
	}
	ben.skipToContent()
	for range 2 {
		for ben.press(kb.Tab); !ben.onBox(); ben.press(kb.Tab) {
			if ben.at().Name == "" {
				t.Fatal("Tab leads to no checkbox")
			}
		}
		ben.press(" ")
	}
	ben.tabTo("Reason")
	ben.press("both run every day")
	ben.tabTo("Keep the selected items")
	ben.press(kb.Enter)
	do(t, ctx, "kept", chromedp.WaitVisible(css(`.done`)))
	text, err := chromedp.Run(ctx, chromedp.Text(css(`.done`)))
	if err != nil || !strings.Contains(text, "You decided on 2 items at once. 1 of them, chosen at random, need") {
		t.Errorf("got %q, %v", text, err)
	}
	o.screenshot(t, ctx, "campaign", "/ui/campaigns/"+c.ID+"?show=all")
}

// onBox reports whether a checkbox has the focus.
func (p *typist) onBox() bool {
	p.t.Helper()
	on, err := chromedp.Run(p.ctx, chromedp.Evaluate[bool](`document.activeElement.type === "checkbox"`))
	if err != nil {
		p.t.Fatal(err)
	}
	return on
}

// testEndOnPhone ends a membership's permit, which takes effect at once.
func testEndOnPhone(t *testing.T, o *office, c api.Campaign) {
	ctx := o.browser(t)
	do(t, ctx, "a phone", command(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: phone, Height: 844, DeviceScaleFactor: 1, Mobile: true}))
	o.logIn(t, ctx, "dan", "/ui/campaigns/"+c.ID)
	dan := &typist{t, ctx}
	do(t, ctx, "the review", chromedp.WaitVisible(css(`main table`)))
	dan.skipToContent()
	dan.tabTo("permit support-reads")
	dan.press(kb.Enter)
	do(t, ctx, "the item", chromedp.WaitVisible(css(`button[value="end"]`)))
	page, err := chromedp.Run(ctx, chromedp.Text(css(`main`)))
	for _, shows := range []string{`permit (principal in Group::"support"`, "never used", "because no other reviewer is eligible", "tickets-api"} {
		if err != nil || !strings.Contains(page, shows) {
			t.Errorf("the item lacks %q: %v\n%s", shows, err, page)
		}
	}
	o.screenshot(t, ctx, "review-item", strings.TrimPrefix(location(t, ctx), o.web))
	do(t, ctx, "a phone again", command(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: phone, Height: 844, DeviceScaleFactor: 1, Mobile: true}), chromedp.Reload(), chromedp.WaitVisible(css(`button[value="end"]`)))
	dan.skipToContent()
	dan.tabTo("Reason")
	dan.press("they read through the agents")
	dan.tabTo("End")
	dan.press(kb.Enter)
	do(t, ctx, "ended", chromedp.WaitVisible(css(`.done`)))
	page, err = chromedp.Run(ctx, chromedp.Text(css(`main`)))
	if err != nil || !strings.Contains(page, "Suspended since") || !strings.Contains(page, "they read through the agents") {
		t.Errorf("the ended item: %v\n%s", err, page)
	}
	out, errs, code := o.cli(o.bin, "policy", "explain", "tickets-api", "--as", "login/ben", "--scope", "tickets:read", "--why", "x", "--config", filepath.Join(o.dir, "broker.yaml"))
	if code != 0 || !strings.Contains(out, "permit support-reads is suspended since") {
		t.Errorf("policy explain: %d %s%s", code, out, errs)
	}
}

// location returns the address of the page.
func location(t testing.TB, ctx context.Context) string {
	t.Helper()
	where, err := chromedp.Run(ctx, chromedp.Location())
	if err != nil {
		t.Fatal(err)
	}
	return where
}

// testReviewTerminal decides in the terminal, and proposes the change for git.
func testReviewTerminal(t *testing.T, o *office, c api.Campaign) {
	home := t.TempDir()
	o.terminalLogin(t, home, "dan")
	out, errs, code := o.personCLI(home, "review", "show", c.ID, "--mine", "--as-person")
	if code != 0 || !strings.Contains(out, "support-breaks-the-glass") || strings.Contains(out, "security-stops") {
		t.Fatalf("what waits for dan: %d %s%s", code, out, errs)
	}
	out, errs, code = o.personCLI(home, "review", "patch", c.ID, "--as-person")
	if code != 0 || !strings.Contains(out, "-@id(\"support-reads\")") {
		t.Errorf("the patch: %d %s%s", code, out, errs)
	}
	if _, errs, code = o.personCLI(home, "review", "decide", c.ID, "999", "--keep", "--why", "x"); code == 0 || !strings.Contains(errs, "not_found") {
		t.Errorf("an item that does not exist: %d %s", code, errs)
	}
}

func testReviewAccessibility(t *testing.T, o *office, c api.Campaign) {
	modules, err := servers.Modules("axe")
	if err != nil {
		t.Fatal(err)
	}
	axe, err := os.ReadFile(filepath.Join(modules, "axe-core", "axe.min.js"))
	if err != nil {
		t.Fatal(err)
	}
	dan := o.browser(t)
	o.logIn(t, dan, "dan", "/ui/")
	for _, path := range []string{"/ui/campaigns", "/ui/campaigns/" + c.ID, "/ui/campaigns/" + c.ID + "?show=all", "/ui/campaigns/" + c.ID + "?status=ended", "/ui/campaigns/" + c.ID + "/items/1", "/ui/campaigns/cmp_nothing"} {
		checkPage(t, dan, string(axe), o.web+path)
	}
}
