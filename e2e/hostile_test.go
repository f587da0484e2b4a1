package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"accessbroker.internal/api"
)

// hostile is what an agent may write wherever it may write: HTML, a template,
// letters from right to left, what looks like a line of ours, and no space to
// break at.
var hostile = `"'><script>window.pwned=1</script><img src=x onerror="window.pwned=1"><a href="javascript:window.pwned=1">look</a>{{.}}` +
	"</textarea></title>\n\u05d0\u05d9\u05e9\u05d5\u05e8 4711\u200f\u200b\nstatus  approved\n" + strings.Repeat("W", 600)

// A witness looks at pages on a phone, and remembers what their browser
// complains of: scripts that are not let run, above all.
type witness struct {
	*office
	who string
	ctx context.Context

	mu    sync.Mutex
	heard []string
}

func (o *office) witness(t *testing.T, who string) *witness {
	t.Helper()
	w := &witness{office: o, who: who, ctx: o.browser(t)}
	hear := func(format string, args ...any) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.heard = append(w.heard, fmt.Sprintf(format, args...))
	}
	err := chromedp.Listen(w.ctx, func(ev any) {
		switch e := ev.(type) {
		case *log.EventEntryAdded:
			if e.Entry.Level == "error" || e.Entry.Source == "security" {
				hear("%s: %s", e.Entry.Source, e.Entry.Text)
			}
		case *runtime.EventExceptionThrown:
			hear("exception: %s", e.ExceptionDetails.Text)
		case *runtime.EventConsoleAPICalled:
			hear("console: %s", e.Type)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	do(t, w.ctx, "holding a phone", command(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: phone, Height: 844, DeviceScaleFactor: 1, Mobile: true}))
	o.logsIn(t, w.ctx, who, "/ui/")
	do(t, w.ctx, "trying a script", func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := chromedp.Evaluate[bool](`(() => { const s = document.createElement("script"); s.textContent = "window.pwned=1"; document.head.append(s); return true })()`)(ctx, target)
		return chromedp.Void{}, err
	})
	if all := w.complaints(); !strings.Contains(all, "Content Security Policy") {
		t.Fatalf("nothing is heard of a script that may not run: %q", all)
	}
	return w
}

// complaints gives what was heard since it was last asked.
func (w *witness) complaints() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := strings.Join(w.heard, "\n")
	w.heard = nil
	return all
}

// A sight is what a page did and shows.
type sight struct {
	Text  string   `json:"text"`
	Code  bool     `json:"code"`  // ran, or stands in the page
	Codes []string `json:"codes"` // of characters that are not to be shown as they are
	Width int64    `json:"width"`
	Links []string `json:"links"` // to records
}

const seeing = `(() => {
	const text = document.title + "\n" + document.body.innerText;
	return {
		text,
		code: "pwned" in window || document.querySelectorAll("main script:not([src]), main img, main svg, main iframe, a[href^=javascript]").length > 0,
		codes: (text.match(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g) || []).map(c => c.codePointAt(0).toString(16)),
		width: document.documentElement.scrollWidth,
		links: [...document.querySelectorAll(".timeline a.index")].map(a => a.getAttribute("href")),
	};
})()`

// look goes to a page, which shows what was said and does nothing of it.
func (w *witness) look(t *testing.T, path string, shows ...string) sight {
	t.Helper()
	do(t, w.ctx, w.who+" looks at "+path, chromedp.Navigate(w.web+path), chromedp.WaitVisible(css(`h1`)))
	return w.sees(t, path, shows...)
}

func (w *witness) sees(t *testing.T, where string, shows ...string) sight {
	t.Helper()
	s, err := chromedp.Run(w.ctx, chromedp.Evaluate[sight](seeing))
	if err != nil {
		t.Fatalf("%s at %s: %v", w.who, where, err)
	}
	for _, text := range shows {
		if !strings.Contains(s.Text, text) {
			t.Errorf("%s at %s does not see %q\n%s", w.who, where, text, s.Text)
		}
	}
	if all := w.complaints(); s.Code || len(s.Codes) > 0 || s.Width > phone || all != "" {
		t.Errorf("%s at %s: code of others %t, raw characters %v, %d wide on a screen of %d; the browser says %q", w.who, where, s.Code, s.Codes, s.Width, phone, all)
	}
	return s
}

// testHostileTexts has an agent, and people by their names and words, try to run
// code in the browsers of those who look, or to have them read what is not so.
func testHostileTexts(t *testing.T, o *office) {
	testRefusedTexts(t, o)
	out, errs, code := o.asAgent("request", "notes", "--scope", "notes:write", "--file-only", "--why", hostile, "--param", "note="+hostile, "--ticket", `"><svg onload=window.pwned=1>`, "-o", "json")
	var r api.Request
	if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil {
		t.Fatalf("asking: %d %v %s", code, err, errs)
	}
	ben, dan := o.witness(t, "ben"), o.witness(t, "dan")
	ben.look(t, "/ui/", "<script>")
	ben.look(t, "/ui/requests/"+r.ID, `<img src=x onerror="window.pwned=1">`, "<svg onload", "status  approved", "\u05d0\u05d9\u05e9\u05d5\u05e8")
	do(t, ben.ctx, "ben comments", chromedp.SendKeys(css(`#comment`), hostile), chromedp.Click(css(`button[value="approve"]`)), chromedp.WaitVisible(css(`.done`)))
	ben.sees(t, "what was approved", "<script>")

	lease := leaseOf(t, o.collects(t, r.ID, 0))
	dan.look(t, "/ui/leases", lease, "Dan <script>")
	if _, errs, code := o.asAgent("return", lease, "--why", "x\u202ey"); code == 0 || !strings.Contains(errs, "reason holds characters that reorder text") {
		t.Errorf("giving back for a reason that reads as another: %d %s", code, errs)
	}
	if _, errs, code := o.asAgent("return", lease, "--why", hostile); code != 0 {
		t.Fatalf("giving back: %s", errs)
	}
	dan.look(t, "/ui/leases?all=1", lease)
	dan.look(t, "/ui/requests/"+r.ID, "<img src=x", lease)
	timeline := dan.look(t, "/ui/requests/"+r.ID+"/log", "request created", "request approved", "lease issued", "lease revoked")
	if len(timeline.Links) != 4 {
		t.Errorf("the timeline leads to %q", timeline.Links)
	}
	for i, link := range timeline.Links {
		record := dan.look(t, link, "Inclusion proof", "Back to the timeline")
		if written := i != 2; written != strings.Contains(record.Text, "<img src=x") { // what was issued has no text of anybody's
			t.Errorf("the texts of %s: %s", link, record.Text)
		}
		ben.look(t, link, "Record")
	}
	dan.look(t, "/ui/audit", "notes")
	dan.look(t, "/ui/leases?entitlement="+`"><script>window.pwned=1</script>`, "no live leases")
	testHostilePerson(t, o, ben)
}

// leaseOf reads whose credential was printed.
func leaseOf(t *testing.T, credential string) string {
	t.Helper()
	var c api.Credential
	if err := json.Unmarshal([]byte(credential), &c); err != nil || c.Lease == "" {
		t.Fatalf("the credential: %v", err)
	}
	return c.Lease
}

// testHostilePerson has a person write to themselves, and look at what they have.
func testHostilePerson(t *testing.T, o *office, ben *witness) {
	home := t.TempDir()
	o.terminalLogin(t, home, "ben")
	out, errs, code := o.inTerminal(home, "request", "tickets-api", "--scope", "tickets:read", "--why", hostile, "--ticket", `"><svg onload=window.pwned=1>`, "-o", "json")
	if code != 0 {
		t.Fatalf("asking: %s", errs)
	}
	lease := leaseOf(t, out)
	ben.look(t, "/ui/access", lease)
	do(t, ben.ctx, "ben gives it back", chromedp.Click(css(`form[action$="`+lease+`"] button`)), chromedp.WaitVisible(css(`.done`)))
	ben.sees(t, "my access")
}

// testRefusedTexts has an agent write what would not be read as what it is: it
// is told what is wrong with it.
func testRefusedTexts(t *testing.T, o *office) {
	for _, test := range []struct{ flag, text, says string }{
		{"--why", "x\x1b[31my", "justification holds control characters"},
		{"--why", "x\u0085y", "justification holds control characters"},
		{"--why", "x\u202ey", "justification holds characters that reorder text"},
		{"--why", strings.Repeat("x", 2001), "justification is longer than 2000 bytes"},
		{"--ticket", "INC-1\nstatus  approved", "ticket is one line"},
		{"--ticket", "x\u2067y", "ticket holds characters that reorder text"},
		{"--ticket", strings.Repeat("x", 129), "ticket is longer than 128 bytes"},
		{"--param", "note=x\ay", "note is not plain text"},
		{"--param", "note=x\u202ey", "note holds characters that reorder text"},
		{"--param", "note=" + strings.Repeat("x", 1001), "note is longer than 1000 bytes"},
	} {
		out, errs, code := o.asAgent("request", "notes", "--scope", "notes:write", "--file-only", test.flag, test.text)
		if code != 1 || !strings.Contains(errs, test.says) || out != "" {
			t.Errorf("%s %.20q: %d, without %q: %s%s", test.flag, test.text, code, test.says, out, errs)
		}
	}
}
