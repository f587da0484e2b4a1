package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"

	"accessbroker.internal/api"
)

// holdSecond makes the page hold its second ceremony until proceed is called. The test
// changes the authenticator in between.
const holdSecond = `(() => {
	const get = navigator.credentials.get.bind(navigator.credentials);
	let calls = 0;
	navigator.credentials.get = async (options) => {
		if (++calls === 2) await new Promise((proceed) => { window.proceed = proceed; });
		return get(options);
	};
	return true;
})()`

// A signer is a person who decides identical requests in a browser.
type signer struct {
	*office
	browser context.Context
	key     webauthn.AuthenticatorID
}

// TestSigningIdenticalRequests approves identical requests at once, each with a signature
// of its own by a passkey in a real browser.
func TestSigningIdenticalRequests(t *testing.T) {
	t.Parallel() // it mostly waits
	bin := filepath.Join(t.TempDir(), "broker")
	if err := buildBroker(bin, "-ldflags", "-X accessbroker.internal/internal/service.passkeyWait=1s"); err != nil {
		t.Fatal(err)
	}
	o := startOffice(t, spireOf(t), bin)
	ben := signer{office: o, browser: o.browser(t)}
	o.logIn(t, ben.browser, "ben", "/ui/")
	ben.key = o.enrolPasskey(t, ben.browser)
	eventually(t, "the passkey to count", time.Minute, func() error {
		do(t, ben.browser, "the inbox", chromedp.Navigate(o.web+"/ui/"), chromedp.WaitVisible(css("h1")))
		if warned, err := chromedp.Run(ben.browser, chromedp.Evaluate[int](`document.querySelectorAll(".warned").length`)); err != nil || warned > 0 {
			return fmt.Errorf("%d warnings, %v", warned, err)
		}
		return nil
	})
	var ids []string
	for i := range 4 {
		ids = append(ids, o.fileRequest(t, "--scope", "tickets:purge", "--why", fmt.Sprintf("duplicate %d", i)).ID)
	}
	const pending, approved, withdrawn = api.StatusPending, api.StatusApproved, api.StatusWithdrawn
	o.screenshot(t, ben.browser, "alike-signed", "/ui/requests/"+ids[0]+"/alike")

	ben.cancelFirst(t, ids[0])
	ben.expect(t, ids, pending, pending, pending, pending)
	ben.cancelSecond(t, ids[0])
	ben.expect(t, ids, approved, pending, pending, pending)
	ben.outcomes(t, 1, 3, "signing was cancelled")

	if _, errs, code := o.agentCLI("withdraw", ids[1]); code != 0 {
		t.Fatalf("withdrawing: %s", errs)
	}
	do(t, ben.browser, "approving the rest", chromedp.Click(css(`button[value="approve"]`)), chromedp.WaitVisible(css(`.outcomes .done + .done, .outcomes .failed + .done + .done`)))
	ben.outcomes(t, 2, 1, "no longer pending")
	ben.expect(t, ids, approved, withdrawn, approved, approved)

	more := []string{o.fileRequest(t, "--scope", "tickets:purge", "--why", "one more").ID, o.fileRequest(t, "--scope", "tickets:purge", "--why", "and one more").ID}
	do(t, ben.browser, "approving two", chromedp.Navigate(o.web+"/ui/requests/"+more[0]+"/alike"), chromedp.Click(css(`button[value="approve"]`)), chromedp.WaitVisible(css(`[data-inbox]`)))
	if text, err := chromedp.Run(ben.browser, chromedp.Text(css(`.done`))); err != nil || text != "2 requests approved." {
		t.Errorf("the inbox: got %q, %v", text, err)
	}
	ben.expect(t, more, approved, approved)
	o.collect(t, ids[2], 0)
	ben.verify(t, 5)
}

// cancelFirst presses Approve and fails the first ceremony. The page sends nothing.
func (s signer) cancelFirst(t *testing.T, id string) {
	do(t, s.browser, "cancelling", chromedp.Navigate(s.web+"/ui/requests/"+id+"/alike"), s.verifies(false),
		chromedp.Click(css(`button[value="approve"]`)), chromedp.WaitVisible(css(`form .failed`)), s.verifies(true))
	if text, err := chromedp.Run(s.browser, chromedp.Text(css(`form .failed`))); err != nil || !strings.Contains(text, "Nothing was sent") {
		t.Errorf("the first ceremony is cancelled: got %q, %v", text, err)
	}
	s.picture(t, "alike-cancelled-first")
}

// cancelSecond presses Approve again and fails the second ceremony.
func (s signer) cancelSecond(t *testing.T, id string) {
	if _, err := chromedp.Run(s.browser, chromedp.Evaluate[bool](holdSecond)); err != nil {
		t.Fatal(err)
	}
	do(t, s.browser, "approving", chromedp.Click(css(`button[value="approve"]`)))
	eventually(t, "the second ceremony", time.Minute, func() error {
		if held, err := chromedp.Run(s.browser, chromedp.Evaluate[bool](`"proceed" in window`)); err != nil || !held {
			return fmt.Errorf("it is not reached: %v", err)
		}
		return nil
	})
	if text, err := chromedp.Run(s.browser, chromedp.Text(css(`form [role="status"]`))); err != nil || text != "Signing 2 of 4." {
		t.Errorf("the progress: got %q, %v", text, err)
	}
	do(t, s.browser, "cancelling the second", s.verifies(false))
	if _, err := chromedp.Run(s.browser, chromedp.Evaluate[bool](`(window.proceed(), true)`)); err != nil {
		t.Fatal(err)
	}
	do(t, s.browser, "the outcomes", chromedp.WaitVisible(css(`.outcomes`)), s.verifies(true))
	s.picture(t, "alike-cancelled-second")
}

// verifies sets whether the authenticator verifies its user.
func (s signer) verifies(is bool) chromedp.Action[chromedp.Void] {
	return command(webauthn.SetUserVerified, webauthn.SetUserVerifiedParams{AuthenticatorID: s.key, IsUserVerified: is})
}

// outcomes checks what the page states about the decisions.
func (s signer) outcomes(t *testing.T, done, failed int, why string) {
	t.Helper()
	got, err := chromedp.Run(s.browser, chromedp.Evaluate[[2][]string](`[".done", ".failed"].map((c) => [...document.querySelectorAll(".outcomes " + c)].map((e) => e.innerText))`))
	if err != nil || len(got[0]) != done || len(got[1]) != failed || slices.ContainsFunc(got[1], func(text string) bool { return !strings.Contains(text, why) }) {
		t.Errorf("the outcomes: got %q, %v; want %d decisions, %d failures with %q", got, err, done, failed, why)
	}
}

// expect checks the requests, and that each approval is signed.
func (s signer) expect(t *testing.T, ids []string, want ...string) {
	t.Helper()
	for i, id := range ids {
		out, errs, code := s.agentCLI("requests", id, "-o", "json")
		var r api.Request
		if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil {
			t.Fatalf("reading %s: %d %v %s", id, code, err, errs)
		}
		if given := r.Approvals.Given; r.Status != want[i] || want[i] == api.StatusApproved && (len(given) != 1 || !given[0].Signed) {
			t.Errorf("request %d: got %s, approvals %+v; want %s", i, r.Status, given, want[i])
		}
	}
}

// verify verifies the log as an auditor who knows ben's passkey.
func (s signer) verify(t *testing.T, signatures int) {
	list, err := exec.Command(s.bin, "audit", "approvers", "sqlite:"+filepath.Join(s.dir, "broker.db")).Output()
	if err != nil || !strings.HasPrefix(string(list), "login/ben localhost ") {
		t.Fatalf("the approvers: %v\n%s", err, list)
	}
	s.write(t, "approvers.txt", string(list))
	s.audit = []string{"--approvers", filepath.Join(s.dir, "approvers.txt")}
	if out, err := s.verifyCommand().CombinedOutput(); err != nil || !strings.Contains(string(out), fmt.Sprintf("%d by passkeys", signatures)) {
		t.Errorf("the log: %v\n%s", err, out)
	}
}

// picture takes a picture of the page as it is, on a desktop and on a phone.
func (s signer) picture(t *testing.T, name string) {
	t.Helper()
	for device, width := range map[string]int64{"desk": 1280, "phone": 360} {
		do(t, s.browser, "the screen", command(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: 844, DeviceScaleFactor: 1, Mobile: device == "phone"}))
		picture, err := chromedp.Run(s.browser, chromedp.FullScreenshot(100))
		if err == nil {
			err = os.WriteFile(filepath.Join(t.ArtifactDir(), name+"-"+device+".png"), picture, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if wide, err := chromedp.Run(s.browser, chromedp.Evaluate[int64](`document.documentElement.scrollWidth`)); err != nil || wide > width {
			t.Errorf("%s on a %s: got width %d, want at most %d (%v)", name, device, wide, width, err)
		}
	}
}
