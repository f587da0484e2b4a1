package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// A stop is what has the focus.
type stop struct {
	Name    string  `json:"name"` // its label, or its text
	Visible bool    `json:"visible"`
	Outline bool    `json:"outline"`
	Top     float64 `json:"top"`
	Left    float64 `json:"left"`
}

const stopping = `(() => {
	const e = document.activeElement;
	if (!e || e === document.body) return { name: "" };
	const style = getComputedStyle(e), box = e.getBoundingClientRect();
	const words = (e.labels?.length ? e.labels[0] : e).innerText || e.value || e.name;
	return {
		name: words.trim().replace(/\s+/g, " "),
		visible: box.width > 1 && box.height > 1 && box.top >= 0 && box.left >= 0 && box.bottom <= innerHeight && box.right <= innerWidth && style.visibility === "visible",
		outline: e.matches(":focus-visible") && style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
		top: box.top + scrollY, left: box.left,
	};
})()`

// A typist has a keyboard, and nothing else.
type typist struct {
	t   *testing.T
	ctx context.Context
}

func (p *typist) press(keys string, modifiers ...chromedp.Modifier) {
	p.t.Helper()
	do(p.t, p.ctx, "a key", chromedp.KeyEvent(keys, chromedp.KeyModifiers(modifiers...)))
}

// at gives what has the focus, and wants it to be seen.
func (p *typist) at() stop {
	p.t.Helper()
	s, err := chromedp.Run(p.ctx, chromedp.Evaluate[stop](stopping))
	if err != nil {
		p.t.Fatal(err)
	}
	if s.Name != "" && (!s.Visible || !s.Outline) {
		p.t.Errorf("%q has the focus, and it is not seen: in view %t, outlined %t", s.Name, s.Visible, s.Outline)
	}
	return s
}

// passes presses Tab, and wants to come by these, in this order.
func (p *typist) passes(names ...string) {
	p.t.Helper()
	for _, name := range names {
		p.press(kb.Tab)
		if s := p.at(); !strings.HasPrefix(s.Name, name) {
			p.t.Fatalf("Tab leads to %q, not to %q", s.Name, name)
		}
	}
}

// reaches presses Tab until it has come to something, whose name begins so, and
// gives what it came by. The way leads down the page, one column after another.
func (p *typist) reaches(name string) (by []string) {
	p.t.Helper()
	var last stop
	for range 60 {
		p.press(kb.Tab)
		s := p.at()
		if s.Top < last.Top-40 && s.Left <= last.Left {
			p.t.Errorf("after %q, Tab leads back up to %q", last.Name, s.Name)
		}
		if strings.HasPrefix(s.Name, name) {
			return by
		}
		by, last = append(by, s.Name), s
	}
	p.t.Fatalf("Tab does not lead to %q, but by %q", name, by)
	return nil
}

// toContent takes the way round what is on top of every page.
func (p *typist) toContent() {
	p.t.Helper()
	p.passes("Skip to the content")
	p.press(kb.Enter)
}

// testKeyboard has somebody decide who has a keyboard and no mouse.
func testKeyboard(t *testing.T, o *office) {
	ctx := o.browser(t)
	o.logsIn(t, ctx, "ben", "/ui/")
	ben := &typist{t, ctx}
	r := o.asks(t, "--scope", "tickets:close", "--scope", "tickets:read", "--why", "duplicates, by the keyboard")
	do(t, ctx, "the inbox", chromedp.Navigate(o.web+"/ui/"), chromedp.WaitVisible(css(`a[href$="`+r.ID+`"]`)))
	ben.passes("Skip to the content", "Access Broker", "Inbox", "My access", "Entitlements", "Leases", "Audit", "Ben Test", "Log out", "tickets-api")

	do(t, ctx, "the inbox, again", chromedp.Navigate(o.web+"/ui/"), chromedp.WaitVisible(css(`a[href$="`+r.ID+`"]`)))
	ben.toContent()
	ben.passes("tickets-api")
	for !ben.on(r.ID) {
		ben.passes("tickets-api") // others wait as well
	}
	ben.press(kb.Enter)
	do(t, ctx, "the request", chromedp.WaitVisible(css(`button[value="approve"]`)))

	ben.toContent()
	ben.passes("Comment")
	ben.press("reading is enough")
	ben.passes("Grant less")
	ben.press(" ")
	do(t, ctx, "what can be less", chromedp.WaitVisible(css(`input[name="ttl"]`)))
	ben.passes("tickets:close")
	ben.press(" ")
	ben.passes("tickets:read", "TTL of each credential")
	ben.press("2m")     // a field that Tab leads to is selected
	ben.press(kb.Enter) // and Enter in it decides nothing
	ben.passes("Collectable for", "Approve", "Deny")
	ben.press(kb.Tab, chromedp.ModifierShift)
	if s := ben.at(); s.Name != "Approve" {
		t.Fatalf("Shift and Tab lead from Deny to %q", s.Name)
	}
	ben.press(kb.Enter)
	do(t, ctx, "approved", chromedp.WaitVisible(css(`.done`)))
	text, err := chromedp.Run(ctx, chromedp.Text(css(`main`)))
	if err != nil || !strings.Contains(text, "reading is enough") || !strings.Contains(text, "for tickets:read, valid 2m") {
		t.Errorf("what was approved: %v\n%s", err, text)
	}
	if out := o.collects(t, r.ID, 0); !strings.Contains(out, `"tickets:read"`) || strings.Contains(out, `"tickets:close"`) {
		t.Errorf("what was granted: %s", out)
	}
	testDenyingByKeyboard(t, o, ben)
}

// on says whether a link to something has the focus.
func (p *typist) on(id string) bool {
	p.t.Helper()
	href, err := chromedp.Run(p.ctx, chromedp.Evaluate[string](`document.activeElement.getAttribute("href") || ""`))
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.HasSuffix(href, id)
}

// testDenyingByKeyboard has somebody deny, and come by everything that the page
// of a request has, once.
func testDenyingByKeyboard(t *testing.T, o *office, ben *typist) {
	r := o.asks(t, "--scope", "tickets:close", "--why", "no good reason, by the keyboard")
	do(t, ben.ctx, "another request", chromedp.Navigate(o.web+"/ui/requests/"+r.ID), chromedp.WaitVisible(css(`button[value="deny"]`)))
	ben.toContent()
	by := ben.reaches("Audit log of this request")
	if want := []string{"Comment (recorded)", "Grant less than requested", "Approve", "Deny"}; len(by) < len(want) || !slices.Equal(by[:len(want)], want) {
		t.Errorf("on the way through the page: %q", by)
	}
	for range len(by) - 3 {
		ben.press(kb.Tab, chromedp.ModifierShift)
	}
	if s := ben.at(); s.Name != "Deny" {
		t.Fatalf("back from the end, by %q, is %q", by, s.Name)
	}
	ben.press(" ")
	do(t, ben.ctx, "denied", chromedp.WaitVisible(css(`.done`)))
	o.collects(t, r.ID, 3)
}
