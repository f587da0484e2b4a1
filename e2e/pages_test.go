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

// css selects an element. For a plain string, the library also searches the text of
// the page, where a hash in base64 may contain "h1".
type css = chromedp.CSS

// do runs actions in a browser.
func do(t testing.TB, ctx context.Context, what string, actions ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	short, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := chromedp.Do(short, actions...); err != nil {
		page, unread := chromedp.Run(ctx, chromedp.Evaluate[string](`document.documentElement.outerHTML`))
		if unread != nil {
			page = fmt.Sprintf("reading the page: %v", unread)
		}
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

// testPages approves, reduces and denies requests in the pages. The inbox shows
// new requests without a reload, and two clicks are enough.
func testPages(t *testing.T, o *office) {
	ben := o.browser(t)
	o.logIn(t, ben, "ben", "/ui/")
	do(t, ben, "an empty inbox", chromedp.WaitVisible(css(`.empty`)))
	r := o.fileRequest(t, "--scope", "tickets:close", "--scope", "tickets:read", "--why", "duplicates of INC-4711")
	link := fmt.Sprintf(`a[href="/ui/requests/%s"]`, r.ID)
	do(t, ben, "the live inbox", chromedp.WaitVisible(css(link)))
	do(t, ben, "approving",
		chromedp.Click(css(link)), chromedp.WaitVisible(css(`button[value="approve"]`)),
		chromedp.SendKeys(css(`#comment`), "as agreed"), chromedp.Click(css(`button[value="approve"]`)),
		chromedp.WaitVisible(css(`.done`)))
	o.collect(t, r.ID, 0)

	r = o.fileRequest(t, "--scope", "tickets:close", "--scope", "tickets:read", "--why", "more duplicates")
	do(t, ben, "granting less",
		chromedp.Navigate(o.web+"/ui/requests/"+r.ID), chromedp.Click(css(`.decide summary`)), chromedp.WaitVisible(css(`input[name="ttl"]`)),
		chromedp.Click(css(`input[name="scope.tickets:close"]`)),
		chromedp.SetValue(css(`input[name="ttl"]`), "2m"),
		chromedp.Click(css(`button[value="approve"]`)), chromedp.WaitVisible(css(`.done`)))
	if out := o.collect(t, r.ID, 0); !strings.Contains(out, `"tickets:read"`) || strings.Contains(out, `"tickets:close"`) {
		t.Errorf("the grant: %s", out)
	}

	r = o.fileRequest(t, "--scope", "tickets:close", "--why", "no good reason")
	do(t, ben, "denying",
		chromedp.Navigate(o.web+"/ui/requests/"+r.ID), chromedp.SendKeys(css(`#comment`), "use the merge"), chromedp.Click(css(`button[value="deny"]`)), chromedp.WaitVisible(css(`.done`)))
	o.collect(t, r.ID, 3)
	testStalePage(t, o, ben)
	testCommandOfOwnRequest(t, o, ben)
}

// testCommandOfOwnRequest requests access in the browser and copies the command with which
// to go on.
func testCommandOfOwnRequest(t *testing.T, o *office, ben context.Context) {
	do(t, ben, "requesting", chromedp.Navigate(o.web+"/ui/entitlements/tickets-api"), chromedp.WaitVisible(css(`textarea[name="why"]`)),
		chromedp.SetAttributes(css(`input[name="scope.tickets:read"]`), map[string]string{"checked": "checked"}), chromedp.SendKeys(css(`textarea[name="why"]`), "reading up"),
		chromedp.Click(css(`button.go`)), chromedp.WaitVisible(css(`.command button`)),
		chromedp.Click(css(`.command button`)))
	eventually(t, "the copied command", 10*time.Second, func() error {
		text, err := chromedp.Run(ben, chromedp.Text(css(`.command`)))
		if err != nil || !strings.HasPrefix(text, "broker collect req_") || !strings.HasSuffix(text, "Copied") {
			return fmt.Errorf("the page says %q, %v", text, err)
		}
		return nil
	})
}

// collect collects a request as the agent and returns the output. want is the exit
// code.
func (o *office) collect(t testing.TB, id string, want int) string {
	t.Helper()
	out, errs, code := o.agentCLI("collect", id, "-o", "json")
	if code != want {
		t.Errorf("collecting %s: %d %s%s", id, code, out, errs)
	}
	return out
}

// testStalePage withdraws a request while an approver's browser shows it. The page
// reports the change, and its form is refused.
func testStalePage(t *testing.T, o *office, ben context.Context) {
	r := o.fileRequest(t, "--scope", "tickets:close", "--why", "second thoughts")
	do(t, ben, "opening the request", chromedp.Navigate(o.web+"/ui/requests/"+r.ID), chromedp.WaitVisible(css(`button[value="approve"]`)))
	if _, errs, code := o.agentCLI("withdraw", r.ID); code != 0 {
		t.Fatal(errs)
	}
	do(t, ben, "seeing the change", chromedp.WaitVisible(css(`.changed`)))
	do(t, ben, "approving the withdrawn request", chromedp.Click(css(`button[value="approve"]`)), chromedp.WaitVisible(css(`.failed`)))
}
