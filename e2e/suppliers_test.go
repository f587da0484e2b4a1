package e2e

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"accessbroker.internal/api"
	"accessbroker.internal/e2e/servers"
)

const officeSuppliers = `
acme-data:
  name: Acme Data GmbH
  sponsor: login/ana
  contract: {start: 2020-01-01, end: 2099-12-31}
  paths: [spiffe://acme.test/vendors/acme-data]
  ceiling: [tickets-api]
  assessment: {by: security, questions: ["Where is the data stored?"]}
`

const assessedPolicy = `
@id("vendors")
@supplier("assessed_within=365d, max_risk=medium")
permit (principal in Supplier::"acme-data", action == Action::"request", resource == Entitlement::"tickets-api")
when { ["tickets:read"].containsAll(context.scopes) };
`

// TestSupplierAssessment assesses a supplier in Chromium, with the keyboard alone on a
// desktop; the request of its program, which waited, is granted. The page is also looked at
// on a phone.
func TestSupplierAssessment(t *testing.T) {
	t.Parallel() // it mostly waits
	s := spireOf(t)
	o := startOffice(t, s, brokerBinary(t))
	o.writePeople(t, staffOf("Dan"))
	o.write(t, "policies/suppliers.yaml", officeSuppliers)
	o.write(t, "policies/suppliers.cedar", assessedPolicy)
	if out, errs, code := o.cli(o.bin, "reload", "--admin-socket", o.dir+"/admin.sock"); code != 0 {
		t.Fatalf("reload: %d %s%s", code, out, errs)
	}
	loader := copyBinary(t, o.bin, "loader")
	s.register(t, "/vendors/acme-data/loader", loader)
	var r api.Request
	eventually(t, "the supplier's request", time.Minute, func() error {
		out, _, _ := o.cli(loader, "request", "tickets-api", "--scope", "tickets:read", "--why", "the nightly load", "--file-only", "-o", "json", "--server", "https://"+o.listen)
		return json.Unmarshal([]byte(out), &r)
	})
	if r.Status != api.StatusPending {
		t.Fatalf("before the assessment: %+v", r)
	}
	dan := o.browser(t)
	o.logIn(t, dan, "dan", "/ui/assessments")
	t.Run("phone", func(t *testing.T) {
		do(t, dan, "a phone", command(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: phone, Height: 844, DeviceScaleFactor: 1, Mobile: true}))
		do(t, dan, "the supplier", chromedp.Navigate(o.web+"/ui/assessments/acme-data"), chromedp.WaitVisible(css(`button[value="assess"]`)))
		page, err := chromedp.Run(dan, chromedp.Text(css(`main`)))
		if err != nil || !strings.Contains(page, "1 request waits for it") || !strings.Contains(page, "Where is the data stored?") {
			t.Errorf("%v\n%s", err, page)
		}
		o.screenshot(t, dan, "supplier", "/ui/assessments/acme-data")
		o.screenshot(t, dan, "suppliers", "/ui/assessments")
	})
	t.Run("keyboard", func(t *testing.T) { testAssessByKeyboard(t, o, &typist{t, dan}) })
	out, errs, code := o.cli(loader, "collect", r.ID, "-o", "json", "--server", "https://"+o.listen)
	if code != 0 || !strings.Contains(out, `"token"`) {
		t.Errorf("collecting after the assessment: %d %s", code, errs)
	}
	t.Run("accessibility", func(t *testing.T) { testSupplierAccessibility(t, o, dan) })
}

// testAssessByKeyboard fills in and sends the form of an assessment.
func testAssessByKeyboard(t *testing.T, o *office, dan *typist) {
	do(t, dan.ctx, "a desktop", command(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: 1280, Height: 900, DeviceScaleFactor: 1}))
	do(t, dan.ctx, "the suppliers", chromedp.Navigate(o.web+"/ui/assessments"), chromedp.WaitVisible(css(`a[href$="/acme-data"]`)))
	dan.skipToContent()
	dan.tabTo("Acme Data GmbH")
	dan.press(kb.Enter)
	do(t, dan.ctx, "the supplier", chromedp.WaitVisible(css(`button[value="assess"]`)))
	dan.tabThrough("Skip to the content", "Skip to the form")
	dan.press(kb.Enter)
	dan.tabTo("Where is the data stored?")
	dan.press("In <b>Frankfurt</b>")
	dan.press(kb.Tab)
	dan.press(kb.ArrowDown) // from low to medium
	dan.press(kb.Tab)
	dan.press("https://docs.acme.test/acme.pdf")
	dan.press(kb.Tab)
	dan.press("01312027") // month, day, year
	dan.press(kb.Enter)
	do(t, dan.ctx, "assessed", chromedp.WaitVisible(css(`.done`)))
	page, err := chromedp.Run(dan.ctx, chromedp.Text(css(`main`)))
	for _, shows := range []string{"medium", "In <b>Frankfurt</b>", "login/dan", "2027"} {
		if err != nil || !strings.Contains(page, shows) {
			t.Errorf("the assessment lacks %q: %v\n%s", shows, err, page)
		}
	}
}

func testSupplierAccessibility(t *testing.T, o *office, dan context.Context) {
	modules, err := servers.Modules("axe")
	if err != nil {
		t.Fatal(err)
	}
	axe, err := os.ReadFile(filepath.Join(modules, "axe-core", "axe.min.js"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/ui/assessments", "/ui/assessments/acme-data"} {
		checkPage(t, dan, string(axe), o.web+path)
	}
}
