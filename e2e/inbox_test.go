package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"accessbroker.internal/api"
)

// agents registers n further agents and returns their programs.
func (o *office) agents(t testing.TB, s *spire, n int) (programs []string) {
	t.Helper()
	for i := range n {
		name := fmt.Sprintf("agent-%d", i)
		program := copyBinary(t, o.bin, name)
		s.register(t, "/agent/"+name, program)
		programs = append(programs, program)
	}
	for _, program := range programs {
		eventually(t, "an agent's identity", time.Minute, func() error {
			if _, errs, code := o.cli(program, "whoami", "--server", "https://"+o.listen); code != 0 {
				return fmt.Errorf("%s", errs)
			}
			return nil
		})
	}
	return programs
}

// asks files a request as one of the agents. Different TTLs keep requests apart.
func (o *office) asks(t testing.TB, program string, ttl int, why string) api.Request {
	t.Helper()
	out, errs, code := o.cli(program, "request", "tickets-api", "--scope", "tickets:close", "--file-only", "-o", "json", "--ttl", fmt.Sprintf("%ds", ttl), "--why", why, "--server", "https://"+o.listen)
	var r api.Request
	if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil {
		t.Fatalf("filing a request: %d %v %s", code, err, errs)
	}
	return r
}

// A place is what a page of the inbox shows and where.
type place struct {
	Rows   []string `json:"rows"` // the requests, by their links
	Height int      `json:"height"`
	Width  int      `json:"width"`
	Focus  string   `json:"focus"` // the link that has the focus
	Top    float64  `json:"top"`   // of it, in the window
	Title  string   `json:"title"`
	Count  string   `json:"count"`
	News   string   `json:"news"`
	Gone   int      `json:"gone"` // rows that are marked as decided
}

const placeScript = `(() => {
	const e = document.activeElement;
	return {
		rows: [...document.querySelectorAll("td.what a")].map((a) => a.getAttribute("href").split("?")[0]),
		height: document.documentElement.scrollHeight, width: document.documentElement.scrollWidth,
		focus: e && e.getAttribute("href") || "", top: e ? e.getBoundingClientRect().top : 0,
		title: document.title, count: document.querySelector("[data-count]").innerText.trim(),
		news: (document.querySelector("[data-news]") || { innerText: "" }).innerText.trim(), gone: document.querySelectorAll("tr.gone").length,
	};
})()`

func inboxPlace(t testing.TB, ctx context.Context) place {
	t.Helper()
	p, err := chromedp.Run(ctx, chromedp.Evaluate[place](placeScript))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestSixtyWaiting reaches each of sixty waiting requests in pages of bounded height, on
// a desktop and on a phone. A new request and a withdrawn one are announced, and move
// nothing.
func TestSixtyWaiting(t *testing.T) {
	t.Parallel()
	s := spireOf(t)
	o := startOffice(t, s, brokerBinary(t))
	ben := o.browser(t)
	o.logIn(t, ben, "ben", "/ui/")
	const each = 15
	programs := o.agents(t, s, 4)
	var want []string
	for i := range each {
		for j, program := range programs {
			want = append(want, "/ui/requests/"+o.asks(t, program, 60+i, fmt.Sprintf("duplicate %d\n\n\nof %d", i, j)).ID)
		}
	}
	for _, screen := range [][2]int64{{1280, 3000}, {360, 5000}} {
		width, most := screen[0], int(screen[1])
		do(t, ben, "the screen", command(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: 844, DeviceScaleFactor: 1, Mobile: width < 500}),
			chromedp.Navigate(o.web+"/ui/"), chromedp.WaitVisible(css("table.inbox")))
		var got []string
		for pages := 1; ; pages++ {
			p := inboxPlace(t, ben)
			if p.Height > most || int64(p.Width) > width || !strings.HasPrefix(p.Title, "(60) Inbox") || !strings.HasPrefix(p.Count, "60") {
				t.Errorf("page %d at %d pixels: got %+v, want a height of at most %d and a count of 60", pages, width, p, most)
			}
			got = append(got, p.Rows...)
			if len(got) >= len(want) || len(p.Rows) == 0 {
				break
			}
			do(t, ben, "the next page", chromedp.Click(css(`a[rel="next"]`)), chromedp.WaitVisible(css(`a[href$="`+want[len(got)]+`"], a[href*="`+want[len(got)]+`?"]`)))
		}
		if !slices.Equal(got, want) {
			t.Fatalf("at %d pixels: reached %d requests %q, want %q", width, len(got), got, want)
		}
	}
	for i, width := range []int64{1280, 360} {
		do(t, ben, "the screen", command(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: 844, DeviceScaleFactor: 1, Mobile: width < 500}))
		testAnnouncement(t, o, ben, programs[i], want[i:])
	}
}

// testAnnouncement changes the inbox while a link of it has the focus.
func testAnnouncement(t *testing.T, o *office, ben context.Context, program string, ids []string) {
	do(t, ben, "the first page", chromedp.Navigate(o.web+"/ui/"), chromedp.WaitVisible(css("table.inbox")))
	if _, err := chromedp.Run(ben, chromedp.Evaluate[bool](`(document.querySelectorAll("td.what a")[3].focus(), true)`)); err != nil {
		t.Fatal(err)
	}
	before := inboxPlace(t, ben)
	fresh := o.asks(t, program, 600, "one more")
	_, withdrawn, _ := strings.Cut(ids[0], "/ui/requests/")
	if _, errs, code := o.cli(program, "withdraw", withdrawn, "--server", "https://"+o.listen); code != 0 {
		t.Fatalf("withdrawing: %s", errs)
	}
	var after place
	eventually(t, "the announcement", time.Minute, func() error {
		if after = inboxPlace(t, ben); !strings.HasPrefix(after.News, "1 new request, 1 decided: show") {
			return fmt.Errorf("got %q", after.News)
		}
		return nil
	})
	if before.Focus != ids[3] || after.Focus != before.Focus || math.Abs(after.Top-before.Top) >= 1 || !slices.Equal(after.Rows, before.Rows) || after.Height != before.Height || after.Gone != 1 {
		before.Rows, after.Rows = nil, nil // they are long
		t.Errorf("a change moved the page: before %+v, after %+v, want the focus on %s", before, after, ids[3])
	}
	if !strings.HasPrefix(after.Title, "(60) Inbox") { // one more, one less
		t.Errorf("got title %q, want 60 waiting", after.Title)
	}
	do(t, ben, "showing the news", chromedp.Click(css("[data-news] a")), chromedp.WaitVisible(css(`a[href*="`+fresh.ID+`"]`)))
	if p := inboxPlace(t, ben); len(p.Rows) == 0 || p.Rows[0] != "/ui/requests/"+fresh.ID || p.News != "" {
		t.Errorf("after showing the news: got %+v, want %s first", p, fresh.ID)
	}
}
