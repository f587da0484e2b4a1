package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/chromedp"
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
	do(t, ben, "denying",
		chromedp.Navigate(o.web+"/ui/requests/"+r.ID), chromedp.Click(css(`button[value="deny"]`)), chromedp.WaitVisible(css(`.done`)))
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
