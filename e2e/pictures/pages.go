package pictures

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	"accessbroker.internal/e2e/servers"
)

// sharp is the number of pixels of a picture for each CSS pixel of the page.
const sharp = 1.5

// A shot is one screenshot of a page. A path may name WAITING, the request that waits for
// Ben, and APPROVED, one that he has approved.
type shot struct {
	name, person, path string
	width, height      int64 // in CSS pixels; the height is the most that is shown
	theme              string
	of                 string // the element that is shown, instead of the page
}

var shots = []shot{
	{"request", "ben", "/ui/requests/WAITING", 1040, 917, "light", ""},
	{"request-dark", "ben", "/ui/requests/WAITING", 1040, 917, "dark", ""},
	{"request-phone", "ben", "/ui/requests/WAITING", 390, 1000, "dark", ""},
	{"inbox", "ben", "/ui/", 1120, 700, "light", ""},
	{"overview", "dan", "/ui/overview", 1040, 770, "light", ""},
	{"timeline", "dan", "/ui/requests/APPROVED", 1040, 1000, "light", "figure.axis"},
	{"audit", "dan", "/ui/audit", 1040, 758, "light", ""},
}

// A request is filed before the screenshots. Ben decides on it unless decision is empty.
type request struct {
	caller   string // the socket of its Workload API
	decision string
	args     []string
}

// requests are in their order. The last one waits for Ben, and one page shows it.
var requests = []request{
	{"agent", "", []string{"--scope", "tickets:read", "--why", "triage of INC-4711"}},
	{"agent", "", []string{"--scope", "tickets:read", "--scope", "tickets:comment", "--why", "answers to INC-4698 and INC-4702"}},
	{"service", "", []string{"--scope", "tickets:read"}},
	{"service", "", []string{"--scope", "tickets:close", "--why", "clean-up"}},
	{"agent", "approve", []string{"--scope", "tickets:close", "--file-only", "--why", "INC-4698 is answered"}},
	{"agent", "deny", []string{"--scope", "tickets:close", "--file-only", "--why", "no answer for a day"}},
	{"agent", "", []string{"--scope", "tickets:close", "--file-only", "--why", "duplicate of INC-4710"}},
	{"agent", "", []string{"--scope", "tickets:close", "--file-only", "--why", "duplicate of INC-4715"}},
	{"agent", "", []string{"--scope", "tickets:close", "--scope", "tickets:read", "--file-only", "--ticket", "INC-4711", "--why", "The customer filed INC-4711 three times. Two of them are duplicates: I want to close INC-4712 and INC-4713."}},
}

// Pages takes the screenshots of the pages of "broker dev", and writes them to a folder.
func Pages(ctx context.Context, broker, dir string) error {
	return inWorld(ctx, broker, func(w *world) error {
		browsers := map[string]context.Context{}
		for _, person := range []string{"ben", "dan"} {
			b, stop, err := w.open(ctx, person)
			if err != nil {
				return fmt.Errorf("logging in as %s: %w", person, err)
			}
			defer stop()
			browsers[person] = b
		}
		ids := map[string]string{} // the last request of each decision
		for _, r := range requests {
			id, err := w.file(ctx, r)
			if err != nil {
				return err
			}
			if err := w.decide(browsers["ben"], r, id); err != nil {
				return fmt.Errorf("deciding on %s as Ben: %w", id, err)
			}
			ids[r.decision] = id
			if r.decision == "approve" {
				if err := w.collect(ctx, r, id); err != nil {
					return err
				}
			}
		}
		for _, s := range shots {
			path := strings.NewReplacer("APPROVED", ids["approve"], "WAITING", ids[""]).Replace(s.path)
			picture, err := s.take(browsers[s.person], w.pages+path)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if err := os.WriteFile(filepath.Join(dir, s.name+".png"), picture, 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}

// open starts a browser in which a person is logged in.
func (w *world) open(ctx context.Context, person string) (_ context.Context, stop func(), err error) {
	chromium, err := servers.Command("chromium")
	if err != nil {
		return nil, nil, err
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(chromium), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("hide-scrollbars", true), chromedp.UserDataDir(filepath.Join(w.dir, "browser-"+person)))
	allocator, end := chromedp.NewExecAllocator(ctx, options...)
	ctx, cancel := chromedp.NewContext(allocator)
	ctx, done := context.WithTimeout(ctx, 5*time.Minute)
	stop = func() { done(); cancel(); end() }
	button := chromedp.CSS(`button[value="` + person + `"]`)
	err = chromedp.Do(ctx, chromedp.Navigate(w.pages+"/ui/"), chromedp.WaitVisible(button), chromedp.Click(button), chromedp.WaitVisible(chromedp.CSS("header a.brand")))
	if err != nil {
		stop()
	}
	return ctx, stop, err
}

// decide decides on a request in a person's browser.
func (w *world) decide(browser context.Context, r request, id string) error {
	if r.decision == "" {
		return nil
	}
	return chromedp.Do(browser,
		chromedp.Navigate(w.pages+"/ui/requests/"+id), chromedp.WaitVisible(chromedp.CSS(`#comment`)),
		chromedp.SendKeys(chromedp.CSS(`#comment`), "as agreed"), chromedp.Click(chromedp.CSS(`button[value="`+r.decision+`"]`)),
		chromedp.WaitVisible(chromedp.CSS(`.done`)))
}

// take returns a screenshot of a page, from its top.
func (s shot) take(browser context.Context, url string) ([]byte, error) {
	err := chromedp.Do(browser,
		command(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: s.width, Height: s.height, DeviceScaleFactor: sharp, Mobile: s.width < 500}),
		command(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: s.theme}}}),
		chromedp.Navigate(url), chromedp.WaitVisible(chromedp.CSS("h1")))
	if err != nil {
		return nil, err
	}
	box, err := chromedp.Run(browser, chromedp.Evaluate[[]float64](`(() => {
		const b = document.querySelector("`+cmp.Or(s.of, "html")+`").getBoundingClientRect();
		const edge = Math.min(16, b.x);
		return [b.x - edge, b.y + scrollY, b.width + 2 * edge, b.height + edge];
	})()`))
	if err != nil {
		return nil, err
	}
	clip := page.Viewport{X: box[0], Y: box[1], Width: box[2], Height: min(box[3], float64(s.height)), Scale: 1}
	picture, err := chromedp.Run(browser, func(ctx context.Context, target *chromedp.Target) ([]byte, error) {
		answer, err := cdp.Call(ctx, target, page.CaptureScreenshot, page.CaptureScreenshotParams{Clip: &clip, CaptureBeyondViewport: new(true)})
		if err != nil {
			return nil, err
		}
		return answer.Data, nil
	})
	if err != nil {
		return nil, err
	}
	return shrink(picture)
}

// command sends a command of the DevTools protocol.
func command[P any](c cdp.Command[P, cdp.Empty], params P) chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, c, params)
		return chromedp.Void{}, err
	}
}
