package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"
)

// withPasskey adds a virtual authenticator to a browser and returns its ID. It verifies
// its user.
func withPasskey(t testing.TB, ctx context.Context) (id webauthn.AuthenticatorID) {
	t.Helper()
	do(t, ctx, "adding an authenticator",
		command(webauthn.Enable, webauthn.EnableParams{}),
		func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
			added, err := cdp.Call(ctx, target, webauthn.AddVirtualAuthenticator, webauthn.AddVirtualAuthenticatorParams{Options: &webauthn.VirtualAuthenticatorOptions{
				Protocol: webauthn.AuthenticatorProtocolCtap2, Transport: webauthn.AuthenticatorTransportInternal,
				HasUserVerification: true, IsUserVerified: true, AutomaticPresenceSimulation: true,
			}})
			id = added.AuthenticatorID
			return chromedp.Void{}, err
		})
	return id
}

// enrolPasskey enrols a passkey in a browser whose person has just logged in. It returns
// the ID of its authenticator.
func (o *office) enrolPasskey(t testing.TB, ctx context.Context) webauthn.AuthenticatorID {
	t.Helper()
	id := withPasskey(t, ctx)
	do(t, ctx, "enrolling a passkey",
		chromedp.Navigate(o.web+"/ui/passkeys"), chromedp.SendKeys(css(`input[name="name"]`), "phone"),
		chromedp.Click(css(`button[value="enrol"]`)), chromedp.WaitVisible(css(`.done`)))
	return id
}

// passkeyWait is the time until a new passkey counts, in this test's build of the
// broker. It replaces a day, which the auditor has to notice. The test has to
// approve once before it is over.
const passkeyWait = 45 * time.Second

// TestPasskeys enrols passkeys in a real browser, vouches, approves and reviews
// with them, and verifies that offline, as an auditor.
func TestPasskeys(t *testing.T) {
	t.Parallel() // it mostly waits
	bin := filepath.Join(t.TempDir(), "broker")
	if err := buildBroker(bin, "-ldflags", "-X accessbroker.internal/internal/service.passkeyWait="+passkeyWait.String()); err != nil {
		t.Fatal(err)
	}
	o := startOffice(t, spireOf(t), bin)
	ben, cleo := o.browser(t), o.browser(t)
	o.logIn(t, ben, "ben", "/ui/")
	o.enrolPasskey(t, ben)
	do(t, ben, "seeing the warning on every page", chromedp.Navigate(o.web+"/ui/"), chromedp.WaitVisible(css(`.warned`)))
	r := o.fileRequest(t, "--scope", "tickets:purge", "--why", "all of them are tests")
	page := o.web + "/ui/requests/" + r.ID
	do(t, ben, "approving too early", chromedp.Navigate(page), chromedp.Click(css(`button[value="approve"]`)), chromedp.WaitVisible(css(`.failed`)))
	if text, err := chromedp.Run(ben, chromedp.Text(css(`.failed`))); err != nil || !strings.Contains(text, "counts from") {
		t.Errorf("too early: %q, %v", text, err)
	}
	eventually(t, "ben's passkey to count", 5*time.Minute, func() error {
		do(t, ben, "approving", chromedp.Navigate(page), chromedp.WaitVisible(css(`button[value="approve"]`)), chromedp.SendKeys(css(`#comment`), "they are"),
			chromedp.Click(css(`button[value="approve"]`)), chromedp.WaitVisible(css(`.done, .failed`)))
		text, err := chromedp.Run(ben, chromedp.Text(css(`.done p, .failed`)))
		if err == nil && text != "You approved this request." {
			err = fmt.Errorf("the page reads %q", text)
		}
		return err
	})
	o.collect(t, r.ID, 0)

	o.logIn(t, cleo, "cleo", "/ui/")
	o.enrolPasskey(t, cleo)
	do(t, cleo, "reading how the passkey counts sooner", chromedp.Click(css(`main summary`)), chromedp.WaitVisible(css(`details .id`)))
	link, err := chromedp.Run(cleo, chromedp.Text(css(`details .id`)))
	if err != nil || !strings.HasPrefix(link, o.web+"/ui/vouch?") {
		t.Fatalf("the link is %q, %v", link, err)
	}
	o.screenshot(t, cleo, "passkeys", "/ui/passkeys", chromedp.Click(css(`main summary`)))
	o.screenshot(t, ben, "vouch", strings.TrimPrefix(link, o.web))
	do(t, ben, "vouching", chromedp.Navigate(link), chromedp.Click(css(`button[value="vouch"]`)), chromedp.WaitVisible(css(`.done`)))
	second := o.fileRequest(t, "--scope", "tickets:purge", "--why", "some more")
	do(t, cleo, "approving at once", chromedp.Navigate(o.web+"/ui/requests/"+second.ID), chromedp.Click(css(`button[value="approve"]`)), chromedp.WaitVisible(css(`.done`)))
	o.collect(t, second.ID, 0)

	glass := o.fileRequest(t, "--scope", "tickets:purge", "--why", "they fill the disk", "--break-glass")
	do(t, cleo, "reviewing", chromedp.Navigate(o.web+"/ui/requests/"+glass.ID), chromedp.SendKeys(css(`#comment`), "half of it was free"),
		chromedp.Click(css(`button[value="unjustified"]`)), chromedp.WaitVisible(css(`.done`)))
	if text, err := chromedp.Run(cleo, chromedp.Text(css(`main`))); err != nil || !strings.Contains(text, "login/cleo: unjustified, signed") {
		t.Errorf("the review: %q, %v", text, err)
	}
	o.checkAudit(t)
}

// approvers writes the passkeys of the log to approvers.txt, and returns them.
func (o *office) approvers(t testing.TB) string {
	t.Helper()
	list, err := exec.Command(o.bin, "audit", "approvers", "sqlite:"+filepath.Join(o.dir, "broker.db")).Output()
	if err != nil {
		t.Fatalf("the approvers: %v\n%s", err, list)
	}
	o.write(t, "approvers.txt", string(list))
	return string(list)
}

// knowApprovers makes the auditor of the log know the passkeys of approvers.txt.
func (o *office) knowApprovers() {
	o.audit = []string{"--approvers", filepath.Join(o.dir, "approvers.txt")}
}

// checkAudit verifies the signatures as an auditor who knows the passkeys, and as
// one who does not.
func (o *office) checkAudit(t testing.TB) {
	t.Helper()
	list := o.approvers(t)
	if strings.Count(list, "\n") != 2 || !strings.HasPrefix(list, "login/ben localhost ") {
		t.Fatalf("the approvers:\n%s", list)
	}
	bens, _, _ := strings.Cut(list, "\n")
	o.write(t, "bens.txt", bens)
	if out, err := o.verifyCommand().CombinedOutput(); err == nil || !strings.Contains(string(out), "counts earlier than 24h0m0s after its enrolment") {
		t.Errorf("the verifier does not report a passkey that did not wait for a day: %v\n%s", err, out)
	}
	if out, err := o.verifyCommand("--approvers", filepath.Join(o.dir, "bens.txt")).CombinedOutput(); err == nil || !strings.Contains(string(out), "not among the approvers you gave") {
		t.Errorf("the verifier does not report a passkey of another person: %v\n%s", err, out)
	}
	o.knowApprovers()
	if out, err := o.verifyCommand().CombinedOutput(); err != nil || !strings.Contains(string(out), "4 by passkeys (of the people in --approvers)") {
		t.Errorf("the log: %v\n%s", err, out)
	}
}
