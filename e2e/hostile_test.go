package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"accessbroker.internal/api"
)

// hostile is a text for every field that an agent may write: HTML, a template,
// right-to-left letters, a line that looks like the broker's own, and a long word.
var hostile = `"'><script>window.pwned=1</script><img src=x onerror="window.pwned=1"><a href="javascript:window.pwned=1">look</a>{{.}}` +
	"</textarea></title>\n\u05d0\u05d9\u05e9\u05d5\u05e8 4711\u200f\u200b\nstatus  approved\n" + strings.Repeat("W", 600)

// A visitor opens pages on a phone and collects the errors that the browser
// reports, above all scripts that were blocked.
type visitor struct {
	*office
	who string
	ctx context.Context

	mu     sync.Mutex
	errors []string
}

func (o *office) newVisitor(t testing.TB, who string) *visitor {
	t.Helper()
	w := &visitor{office: o, who: who, ctx: o.browser(t)}
	report := func(format string, args ...any) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.errors = append(w.errors, fmt.Sprintf(format, args...))
	}
	err := chromedp.Listen(w.ctx, func(ev any) {
		switch e := ev.(type) {
		case *log.EventEntryAdded:
			if e.Entry.Level == "error" || e.Entry.Source == "security" {
				report("%s: %s", e.Entry.Source, e.Entry.Text)
			}
		case *runtime.EventExceptionThrown:
			report("exception: %s", e.ExceptionDetails.Text)
		case *runtime.EventConsoleAPICalled:
			report("console: %s", e.Type)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	do(t, w.ctx, "holding a phone", command(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: phone, Height: 844, DeviceScaleFactor: 1, Mobile: true}))
	o.logIn(t, w.ctx, who, "/ui/")
	do(t, w.ctx, "trying a script", func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := chromedp.Evaluate[bool](`(() => { const s = document.createElement("script"); s.textContent = "window.pwned=1"; document.head.append(s); return true })()`)(ctx, target)
		return chromedp.Void{}, err
	})
	if all := w.browserErrors(); !strings.Contains(all, "Content Security Policy") {
		t.Fatalf("the browser did not report a blocked script: %q", all)
	}
	return w
}

// browserErrors returns the errors since the last call.
func (w *visitor) browserErrors() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := strings.Join(w.errors, "\n")
	w.errors = nil
	return all
}

// A sight is the state of a page.
type sight struct {
	Text  string   `json:"text"`
	Code  bool     `json:"code"`  // foreign code ran or is part of the page
	Codes []string `json:"codes"` // code points that must not be shown raw
	Width int64    `json:"width"`
	Links []string `json:"links"` // links to records
}

const seeing = `(() => {
	const text = document.title + "\n" + document.body.innerText;
	return {
		text,
		code: "pwned" in window || document.querySelectorAll("main script:not([src]), main img, main svg[onload], main :not(figure.axis, figure.chart, .legend li) > svg:not(.share), main iframe, a[href^=javascript]").length > 0,
		codes: (text.match(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g) || []).map(c => c.codePointAt(0).toString(16)),
		width: document.documentElement.scrollWidth,
		links: [...document.querySelectorAll(".timeline a.index")].map(a => a.getAttribute("href")),
	};
})()`

// visit opens a page and checks that it shows the texts as texts.
func (w *visitor) visit(t testing.TB, path string, shows ...string) sight {
	t.Helper()
	do(t, w.ctx, w.who+" visits "+path, chromedp.Navigate(w.web+path), chromedp.WaitVisible(css(`h1`)))
	return w.check(t, path, shows...)
}

func (w *visitor) check(t testing.TB, where string, shows ...string) sight {
	t.Helper()
	s, err := chromedp.Run(w.ctx, chromedp.Evaluate[sight](seeing))
	if err != nil {
		t.Fatalf("%s at %s: %v", w.who, where, err)
	}
	for _, text := range shows {
		if !strings.Contains(s.Text, text) {
			t.Errorf("%s at %s: no %q in\n%s", w.who, where, text, s.Text)
		}
	}
	if all := w.browserErrors(); s.Code || len(s.Codes) > 0 || s.Width > phone || all != "" {
		t.Errorf("%s at %s: foreign code %t, raw characters %v, width %d on a screen of %d; the browser reports %q", w.who, where, s.Code, s.Codes, s.Width, phone, all)
	}
	return s
}

// testHostileTexts is an attack by an agent, and by people through their names and
// comments: they try to run code in the browsers of others and to mislead them.
func testHostileTexts(t *testing.T, o *office) {
	o.writePeople(t, staffOf(hostileDan)) // other tests rename dan
	testRefusedTexts(t, o)
	out, errs, code := o.agentCLI("request", "notes", "--scope", "notes:write", "--file-only", "--why", hostile, "--param", "note="+hostile, "--ticket", `"><svg onload=window.pwned=1>`, "-o", "json")
	var r api.Request
	if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil {
		t.Fatalf("requesting: %d %v %s", code, err, errs)
	}
	ben, dan := o.newVisitor(t, "ben"), o.newVisitor(t, "dan")
	ben.visit(t, "/ui/", "<script>")
	ben.visit(t, "/ui/requests/"+r.ID, `<img src=x onerror="window.pwned=1">`, "<svg onload", "status  approved", "\u05d0\u05d9\u05e9\u05d5\u05e8")
	ben.reachesDecision(t)
	do(t, ben.ctx, "ben comments", chromedp.SendKeys(css(`#comment`), hostile), chromedp.Click(css(`button[value="approve"]`)), chromedp.WaitVisible(css(`.done`)))
	ben.check(t, "the approved request", "<script>")

	lease := leaseOf(t, o.collect(t, r.ID, 0))
	dan.visit(t, "/ui/leases", lease, "Dan <script>")
	if _, errs, code := o.agentCLI("return", lease, "--why", "x\u202ey"); code == 0 || !strings.Contains(errs, "reason contains characters that change the direction of text") {
		t.Errorf("returning with a reason that reorders text: %d %s", code, errs)
	}
	if _, errs, code := o.agentCLI("return", lease, "--why", hostile); code != 0 {
		t.Fatalf("returning: %s", errs)
	}
	dan.visit(t, "/ui/leases?all=1", lease)
	dan.visit(t, "/ui/requests/"+r.ID, "<img src=x", lease)
	timeline := dan.visit(t, "/ui/requests/"+r.ID+"/log", "request created", "request approved", "lease issued", "lease revoked")
	if len(timeline.Links) != 4 {
		t.Fatalf("the timeline links to %q, want 4 records", timeline.Links)
	}
	for i, link := range timeline.Links {
		record := dan.visit(t, link, "Inclusion proof", "Timeline of the request")
		if written := i != 2; written != strings.Contains(record.Text, "<img src=x") { // the third, lease issued, has no text of a person
			t.Errorf("the texts of %s: %s", link, record.Text)
		}
		ben.visit(t, link, "Record")
	}
	dan.visit(t, "/ui/audit", "notes")
	dan.visit(t, "/ui/audit?q="+`"><script>window.pwned=1</script>`, "The search is complete")
	dan.visit(t, "/ui/overview", "Votes of people")
	dan.visit(t, "/ui/evidence?framework=nist-csf-2.0&since="+`"><script>window.pwned=1</script>`, "the length of a period")
	dan.visit(t, "/ui/evidence", "Improper Offboarding")
	dan.visit(t, "/ui/leases?entitlement="+`"><script>window.pwned=1</script>`, "no live leases")
	testHostilePerson(t, o, ben)
}

// reachesDecision checks that a hostile text does not keep an approver from the decision:
// a phone shows a button that leads to it at once, and the whole form fits its screen.
func (w *visitor) reachesDecision(t testing.TB) {
	t.Helper()
	type place struct{ Top, Bottom, Screen float64 }
	look := func(selector string) place {
		p, err := chromedp.Run(w.ctx, chromedp.Evaluate[place](`(() => {
			const box = document.querySelector(`+"`"+selector+"`"+`).getBoundingClientRect();
			return { Top: box.top, Bottom: box.bottom, Screen: innerHeight };
		})()`))
		if err != nil {
			t.Fatalf("looking for %s: %v", selector, err)
		}
		return p
	}
	if p := look(`.jump a`); p.Top < 0 || p.Bottom > p.Screen {
		t.Errorf("the button that leads to the decision is at %v", p)
	}
	do(t, w.ctx, "going to the decision", chromedp.Click(css(`.jump a`)))
	for _, selector := range []string{`button[value="approve"]`, `button[value="deny"]`, `#comment`} {
		eventually(t, selector, 10*time.Second, func() error {
			if p := look(selector); p.Top < 0 || p.Bottom > p.Screen {
				return fmt.Errorf("%s is at %v, not on the screen", selector, p)
			}
			return nil
		})
	}
	if p := look(`.quoted .start`); p.Bottom-p.Top > p.Screen {
		t.Errorf("the text is higher than the screen: %v", p)
	}
}

// leaseOf returns the lease of the credential that was printed.
func leaseOf(t testing.TB, credential string) string {
	t.Helper()
	var c api.Credential
	if err := json.Unmarshal([]byte(credential), &c); err != nil || c.Lease == "" {
		t.Fatalf("the credential: %v", err)
	}
	return c.Lease
}

// testHostilePerson shows a person the texts that they wrote themselves.
func testHostilePerson(t *testing.T, o *office, ben *visitor) {
	home := t.TempDir()
	o.terminalLogin(t, home, "ben")
	out, errs, code := o.personCLI(home, "request", "tickets-api", "--scope", "tickets:read", "--why", hostile, "--ticket", `"><svg onload=window.pwned=1>`, "-o", "json")
	if code != 0 {
		t.Fatalf("requesting: %s", errs)
	}
	lease := leaseOf(t, out)
	ben.visit(t, "/ui/access", lease)
	do(t, ben.ctx, "ben returns the lease", chromedp.Click(css(`form[action$="`+lease+`"] button`)), chromedp.WaitVisible(css(`.done`)))
	ben.check(t, "my access")
}

// testRefusedTexts sends texts that would mislead their readers. Each is refused
// with a clear error.
func testRefusedTexts(t *testing.T, o *office) {
	for _, test := range []struct{ flag, text, says string }{
		{"--why", "x\x1b[31my", "justification contains control characters"},
		{"--why", "x\u0085y", "justification contains control characters"},
		{"--why", "x\u202ey", "justification contains characters that change the direction of text"},
		{"--why", strings.Repeat("x", 2001), "justification is longer than 2000 bytes"},
		{"--ticket", "INC-1\nstatus  approved", "ticket must be a single line"},
		{"--ticket", "x\u2067y", "ticket contains characters that change the direction of text"},
		{"--ticket", strings.Repeat("x", 129), "ticket is longer than 128 bytes"},
		{"--param", "note=x\ay", "note is not plain text"},
		{"--param", "note=x\u202ey", "note contains characters that change the direction of text"},
		{"--param", "note=" + strings.Repeat("x", 1001), "note is longer than 1000 bytes"},
	} {
		out, errs, code := o.agentCLI("request", "notes", "--scope", "notes:write", "--file-only", test.flag, test.text)
		if code != 1 || !strings.Contains(errs, test.says) || out != "" {
			t.Errorf("%s %.20q: %d, without %q: %s%s", test.flag, test.text, code, test.says, out, errs)
		}
	}
}
