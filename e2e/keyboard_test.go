package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
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

// skipToDecision skips the header and the facts of a request's page.
func (p *typist) skipToDecision() {
	p.t.Helper()
	p.tabThrough("Skip to the content", "Skip to the decision")
	p.press(kb.Enter)
}

// testKeyboard decides requests with the keyboard alone.
func testKeyboard(t *testing.T, o *office) {
	ctx := o.browser(t)
	o.logIn(t, ctx, "ben", "/ui/")
	ben := &typist{t, ctx}
	r := o.fileRequest(t, "--scope", "tickets:close", "--scope", "tickets:read", "--why", "duplicates, by the keyboard")
	do(t, ctx, "the inbox", chromedp.Navigate(o.web+"/ui/"), chromedp.WaitVisible(css(`a[href$="`+r.ID+`"]`)))
	ben.tabThrough("Skip to the content", "Skip to the requests", "Access Broker", "Inbox", "My access", "Entitlements", "Leases", "Audit", "Ben Test", "Search")

	do(t, ctx, "the inbox, a second time", chromedp.Navigate(o.web+"/ui/"), chromedp.WaitVisible(css(`a[href$="`+r.ID+`"]`)))
	ben.tabThrough("Skip to the content", "Skip to the requests")
	ben.press(kb.Enter)
	ben.tabThrough("tickets-api")
	for !ben.focusedLinkIs(r.ID) {
		ben.tabThrough("tickets-api") // other requests are pending as well
	}
	ben.press(kb.Enter)
	do(t, ctx, "the request", chromedp.WaitVisible(css(`button[value="approve"]`)))

	next := o.fileRequest(t, "--scope", "tickets:close", "--why", "no good reason, by the keyboard")
	ben.skipToDecision()
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
	ben.skipToContent()
	ben.tabThrough("Next: tickets-api")
	ben.press(kb.Enter)
	testDenyingByKeyboard(t, o, ben, next.ID)
	testAccountByKeyboard(t, o, ben)
	testShortcuts(t, o, ben)
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
func testDenyingByKeyboard(t *testing.T, o *office, ben *typist, id string) {
	do(t, ben.ctx, "the next request", chromedp.WaitVisible(css(`form[action$="`+id+`"] button[value="deny"]`)))
	ben.skipToContent()
	by := ben.tabTo("Audit log of this request")
	if want := []string{"Comment (recorded; to deny, state the reason)", "Grant less than requested", "Approve", "Deny"}; len(by) < len(want)+2 || !slices.Equal(by[len(by)-len(want):], want) {
		t.Errorf("Tab moves through %q, want the facts and then %q", by, want)
	}
	ben.press(kb.Tab, chromedp.ModifierShift)
	if s := ben.at(); s.Name != "Deny" {
		t.Fatalf("Shift+Tab from the end, through %q, moves to %q, want Deny", by, s.Name)
	}
	ben.press(" ") // without a reason: the browser moves the focus to the comment
	if s := ben.at(); !strings.HasPrefix(s.Name, "Comment") {
		t.Fatalf("denying without a reason moves to %q, want the comment", s.Name)
	}
	ben.press("use the merge")
	ben.tabThrough("Grant less", "Approve", "Deny")
	ben.press(" ")
	do(t, ben.ctx, "denied", chromedp.WaitVisible(css(`.done`)))
	o.collect(t, id, 3)
}

// testAccountByKeyboard opens the menu of the account on every width, finds the passkeys
// in it, and closes it.
func testAccountByKeyboard(t *testing.T, o *office, ben *typist) {
	defer do(t, ben.ctx, "the former window", command(emulation.ClearDeviceMetricsOverride, cdp.Empty{}))
	for _, width := range []int64{1280, 360, 320} {
		do(t, ben.ctx, fmt.Sprintf("a window of %d pixels", width),
			command(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: 740, DeviceScaleFactor: 1}),
			chromedp.Navigate(o.web+"/ui/access"), chromedp.WaitVisible(css(`h1`)))
		for stops := 0; !strings.HasPrefix(ben.at().Name, "Ben Test"); stops++ { // on a phone, the menu is above the links before it
			if ben.press(kb.Tab); stops > 15 {
				t.Fatalf("at %d pixels, Tab does not reach the account", width)
			}
		}
		ben.press(kb.Enter)
		ben.tabThrough("Security keys and passkeys", "Keyboard shortcuts", "Log out")
		ben.press(kb.Escape)
		if s := ben.at(); !strings.HasPrefix(s.Name, "Ben Test") {
			t.Errorf("at %d pixels, Escape moves to %q, want the account", width, s.Name)
		}
		ben.press(kb.Enter)
		ben.tabThrough("Security keys and passkeys")
		ben.press(kb.Enter)
		do(t, ben.ctx, "the passkeys", chromedp.WaitVisible(css(`[data-enrol], .note`)))
		if title, err := chromedp.Run(ben.ctx, chromedp.Text(css(`h1`))); err != nil || title != "Security keys and passkeys" {
			t.Errorf("at %d pixels, the menu leads to %q, %v", width, title, err)
		}
	}
}

// testShortcuts moves through the inbox and to a decision with single keys, and turns them
// off.
func testShortcuts(t *testing.T, o *office, ben *typist) {
	for range 2 { // with different scopes, so that they do not share a row
		o.fileRequest(t, "--scope", "tickets:close", "--why", "by shortcut")
		o.fileRequest(t, "--scope", "tickets:close", "--scope", "tickets:read", "--why", "by shortcut")
	}
	do(t, ben.ctx, "the inbox", chromedp.Navigate(o.web+"/ui/"), chromedp.WaitVisible(css(`#requests`)))
	focused := func(what, want string) {
		t.Helper()
		got, err := chromedp.Run(ben.ctx, chromedp.Evaluate[bool](`document.activeElement.matches(`+"`"+want+"`"+`)`))
		if err != nil || !got {
			t.Fatalf("%s: the focus is not on %s (%v)", what, want, err)
		}
	}
	ben.press("j")
	focused("j", "#requests tr:nth-child(1) .what a")
	ben.press("j")
	focused("j again", "#requests tr:nth-child(2) .what a")
	ben.press("k")
	focused("k", "#requests tr:nth-child(1) .what a")
	ben.press("/")
	focused("/", "input[type=search]")
	ben.press("jk/?")                                                                                                                  // text, in a field
	if text, err := chromedp.Run(ben.ctx, chromedp.Value(css(`input[type=search]`))); err != nil || !strings.HasSuffix(text, "jk/?") { // the driver also types the key that the script handled
		t.Errorf("typing into a field: got %q, %v", text, err)
	}
	do(t, ben.ctx, "the inbox again", chromedp.Navigate(o.web+"/ui/access"), chromedp.WaitVisible(css(`h1`)))
	ben.press("?")
	do(t, ben.ctx, "the list of shortcuts", chromedp.WaitVisible(css(`dialog.keys`)))
	focused("?", "dialog.keys input")
	ben.press(" ")
	ben.press(kb.Escape)
	ben.press("?")
	if open, err := chromedp.Run(ben.ctx, chromedp.Evaluate[bool](`document.querySelector("dialog.keys").open`)); err != nil || open {
		t.Errorf("a shortcut works although the viewer turned them off: %t, %v", open, err)
	}
	if _, err := chromedp.Run(ben.ctx, chromedp.Evaluate[bool](`localStorage.clear(), true`)); err != nil {
		t.Fatal(err)
	}
}
