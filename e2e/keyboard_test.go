package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// A focus is the element that has the focus.
type focus struct {
	Name    string  `json:"name"` // its label, or its text
	Visible bool    `json:"visible"`
	Outline bool    `json:"outline"`
	Top     float64 `json:"top"`
	Left    float64 `json:"left"`
}

const focusScript = `(() => {
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

// A typist uses a keyboard only.
type typist struct {
	t   *testing.T
	ctx context.Context
}

func (p *typist) press(keys string, modifiers ...chromedp.Modifier) {
	p.t.Helper()
	do(p.t, p.ctx, "a key", chromedp.KeyEvent(keys, chromedp.KeyModifiers(modifiers...)))
}

// at returns the element that has the focus and checks that it is visible and
// outlined.
func (p *typist) at() focus {
	p.t.Helper()
	s, err := chromedp.Run(p.ctx, chromedp.Evaluate[focus](focusScript))
	if err != nil {
		p.t.Fatal(err)
	}
	if s.Name != "" && (!s.Visible || !s.Outline) {
		p.t.Errorf("%q has the focus: visible %t, outlined %t; want true, true", s.Name, s.Visible, s.Outline)
	}
	return s
}

// tabThrough presses Tab and checks that the focus moves to these elements, in this
// order.
func (p *typist) tabThrough(names ...string) {
	p.t.Helper()
	for _, name := range names {
		p.press(kb.Tab)
		if s := p.at(); !strings.HasPrefix(s.Name, name) {
			p.t.Fatalf("Tab leads to %q, not to %q", s.Name, name)
		}
	}
}

// tabTo presses Tab until the name of the focused element begins with name, and
// returns the elements on the way. It checks that the focus moves down the page,
// one column after another.
func (p *typist) tabTo(name string) (by []string) {
	p.t.Helper()
	var last focus
	for range 60 {
		p.press(kb.Tab)
		s := p.at()
		if s.Top < last.Top-40 && s.Left <= last.Left {
			p.t.Errorf("after %q, Tab moves back up to %q", last.Name, s.Name)
		}
		if strings.HasPrefix(s.Name, name) {
			return by
		}
		by, last = append(by, s.Name), s
	}
	p.t.Fatalf("Tab does not reach %q, but %q", name, by)
	return nil
}

// skipToContent skips the header of the page.
func (p *typist) skipToContent() {
	p.t.Helper()
	p.tabThrough("Skip to the content")
	p.press(kb.Enter)
}

// testKeyboard decides requests with the keyboard alone.
func testKeyboard(t *testing.T, o *office) {
	ctx := o.browser(t)
	o.logIn(t, ctx, "ben", "/ui/")
	ben := &typist{t, ctx}
	r := o.fileRequest(t, "--scope", "tickets:close", "--scope", "tickets:read", "--why", "duplicates, by the keyboard")
	do(t, ctx, "the inbox", chromedp.Navigate(o.web+"/ui/"), chromedp.WaitVisible(css(`a[href$="`+r.ID+`"]`)))
	ben.tabThrough("Skip to the content", "Access Broker", "Inbox", "My access", "Entitlements", "Leases", "Audit", "Ben Test", "Log out", "tickets-api")

	do(t, ctx, "the inbox, a second time", chromedp.Navigate(o.web+"/ui/"), chromedp.WaitVisible(css(`a[href$="`+r.ID+`"]`)))
	ben.skipToContent()
	ben.tabThrough("tickets-api")
	for !ben.focusedLinkIs(r.ID) {
		ben.tabThrough("tickets-api") // other requests are pending as well
	}
	ben.press(kb.Enter)
	do(t, ctx, "the request", chromedp.WaitVisible(css(`button[value="approve"]`)))

	ben.skipToContent()
	ben.tabThrough("Comment")
	ben.press("reading is enough")
	ben.tabThrough("Grant less")
	ben.press(" ")
	do(t, ctx, "the narrowing fields", chromedp.WaitVisible(css(`input[name="ttl"]`)))
	ben.tabThrough("tickets:close")
	ben.press(" ")
	ben.tabThrough("tickets:read", "TTL of each credential")
	ben.press("2m")     // Tab selected the field's content
	ben.press(kb.Enter) // must not submit the form
	ben.tabThrough("Collectable for", "Approve", "Deny")
	ben.press(kb.Tab, chromedp.ModifierShift)
	if s := ben.at(); s.Name != "Approve" {
		t.Fatalf("Shift+Tab moves from Deny to %q, want Approve", s.Name)
	}
	ben.press(kb.Enter)
	do(t, ctx, "approved", chromedp.WaitVisible(css(`.done`)))
	text, err := chromedp.Run(ctx, chromedp.Text(css(`main`)))
	if err != nil || !strings.Contains(text, "reading is enough") || !strings.Contains(text, "for tickets:read, valid 2m") {
		t.Errorf("the approved request: %v\n%s", err, text)
	}
	if out := o.collect(t, r.ID, 0); !strings.Contains(out, `"tickets:read"`) || strings.Contains(out, `"tickets:close"`) {
		t.Errorf("the grant: %s", out)
	}
	testDenyingByKeyboard(t, o, ben)
}

// focusedLinkIs reports whether a link that ends with id has the focus.
func (p *typist) focusedLinkIs(id string) bool {
	p.t.Helper()
	href, err := chromedp.Run(p.ctx, chromedp.Evaluate[string](`document.activeElement.getAttribute("href") || ""`))
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.HasSuffix(href, id)
}

// testDenyingByKeyboard denies a request after passing every element of its page.
func testDenyingByKeyboard(t *testing.T, o *office, ben *typist) {
	r := o.fileRequest(t, "--scope", "tickets:close", "--why", "no good reason, by the keyboard")
	do(t, ben.ctx, "another request", chromedp.Navigate(o.web+"/ui/requests/"+r.ID), chromedp.WaitVisible(css(`button[value="deny"]`)))
	ben.skipToContent()
	ben.tabThrough("Comment")
	ben.press("use the merge")
	by := ben.tabTo("Audit log of this request")
	if want := []string{"Grant less than requested", "Approve", "Deny"}; len(by) < len(want) || !slices.Equal(by[:len(want)], want) {
		t.Errorf("Tab moves through %q, want %q first", by, want)
	}
	for range len(by) - 2 {
		ben.press(kb.Tab, chromedp.ModifierShift)
	}
	if s := ben.at(); s.Name != "Deny" {
		t.Fatalf("Shift+Tab from the end, through %q, moves to %q, want Deny", by, s.Name)
	}
	ben.press(" ")
	do(t, ben.ctx, "denied", chromedp.WaitVisible(css(`.done`)))
	o.collect(t, r.ID, 3)
}
