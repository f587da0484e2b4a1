package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"accessbroker.internal/e2e/servers"
)

// A finding is a rule of axe-core that a page breaks.
type finding struct {
	ID, Help string
	Nodes    []string
}

// A checkup is the result of checking one page.
type checkup struct {
	Findings []finding
	Passes   int
	Width    int64
	Alike    []string // names of links or buttons that several targets share
}

const checking = `(async () => {
	const result = await axe.run(document, { resultTypes: ["violations"] });
	const targets = {}, alike = [];
	for (const a of document.querySelectorAll("a[href]")) (targets[a.textContent.trim().replace(/\s+/g, " ")] ??= new Set()).add(a.href);
	for (const b of document.querySelectorAll("main button, main summary")) {
		const form = b.closest("form"), target = form ? form.action + " " + (form.elements.passkey?.value ?? "") + (form.elements.name?.value ?? "") : "";
		(targets[b.textContent.trim().replace(/\s+/g, " ")] ??= new Set()).add(target);
	}
	for (const name in targets) if (targets[name].size > 1) alike.push(name);
	return {
		Findings: result.violations.map(v => ({ ID: v.id, Help: v.help, Nodes: v.nodes.map(n => n.html.slice(0, 200)) })),
		Passes: result.passes.length, Width: document.documentElement.scrollWidth, Alike: alike,
	};
})()`

// A viewport is the size and theme of a browser window.
type viewport struct {
	width int64
	theme string
}

// checkPage checks a page with axe-core, that it fits the screens, and that links and
// buttons with different targets have different names.
func checkPage(t *testing.T, ctx context.Context, axe, url string) {
	t.Helper()
	for _, s := range []viewport{{1280, "light"}, {1280, "dark"}, {360, "dark"}, {320, "light"}} {
		where := fmt.Sprintf("%s at %d pixels, %s", url, s.width, s.theme)
		do(t, ctx, where,
			command(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: s.width, Height: 740, DeviceScaleFactor: 1, Mobile: s.width < 1000}),
			command(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: s.theme}, {Name: "prefers-reduced-motion", Value: "reduce"}}}),
			chromedp.Navigate(url), chromedp.WaitVisible(css("h1")))
		if _, err := chromedp.Run(ctx, chromedp.Evaluate[any](axe+";0")); err != nil {
			t.Fatalf("%s: loading axe-core: %v", where, err)
		}
		c, err := chromedp.Run(ctx, chromedp.Evaluate[checkup](checking, chromedp.EvalAwaitPromise))
		if err != nil || c.Passes == 0 {
			t.Fatalf("%s: running axe-core: %v, %d rules passed", where, err, c.Passes)
		}
		for _, f := range c.Findings {
			t.Errorf("%s: %s (%s)\n%s", where, f.Help, f.ID, strings.Join(f.Nodes, "\n"))
		}
		if c.Width > s.width {
			t.Errorf("%s: got width %d", where, c.Width)
		}
		if len(c.Alike) > 0 {
			t.Errorf("%s: several targets have the same name: %q", where, c.Alike)
		}
	}
}

// testAccessibility checks every page with axe-core, in both themes, on a desktop and on
// phones.
func testAccessibility(t *testing.T, o *office) {
	modules, err := servers.Modules("axe")
	if err != nil {
		t.Fatal(err)
	}
	axe, err := os.ReadFile(filepath.Join(modules, "axe-core", "axe.min.js"))
	if err != nil {
		t.Fatal(err)
	}
	o.writePeople(t, staffOf("Dan"))
	var ids []string
	for i := range 3 {
		ids = append(ids, o.fileRequest(t, "--scope", "tickets:close", "--why", fmt.Sprintf("%d: %s", i, hostile)).ID)
	}
	ben, dan := o.browser(t), o.browser(t)
	o.logIn(t, ben, "ben", "/ui/")
	o.logIn(t, dan, "dan", "/ui/")
	do(t, ben, "approving", chromedp.Navigate(o.web+"/ui/requests/"+ids[0]), chromedp.Click(css(`button[value="approve"]`)), chromedp.WaitVisible(css(`.done`)))
	lease := leaseOf(t, o.collect(t, ids[0], 0))
	for _, path := range []string{
		"/ui/", "/ui/requests/" + ids[1], "/ui/requests/" + ids[0] + "?done=approve", "/ui/access", "/ui/entitlements", "/ui/entitlements/tickets-api",
		"/ui/passkeys", "/ui/device", "/ui/requests/req_nothing", "/ui/terminal?port=50000&state=s&challenge=" + strings.Repeat("A", 43),
	} {
		checkPage(t, ben, string(axe), o.web+path)
	}
	for _, path := range []string{
		"/ui/requests/" + ids[0], "/ui/requests/" + ids[0] + "/log", "/ui/leases", "/ui/leases?all=1&holder=x", "/ui/memberships", "/ui/memberships?differs=1", "/ui/kill", "/ui/audit", "/ui/audit?kind=session&who=login/ana", "/ui/audit?from=yesterday", "/ui/audit/5", "/ui/overview", "/ui/overview?period=30d",
		"/ui/identities", "/ui/identities?problem=any", "/ui/identities?q=nothing+like+this", "/ui/identities?kind=robot", "/ui/identity?id=spiffe%3A%2F%2Facme.test%2Fagent%2Ftriage",
		"/ui/identity?id=login%2Fdan", "/ui/evidence", "/ui/evidence?framework=nist-csf-2.0&since=7d", "/ui/evidence?framework=none",
	} {
		checkPage(t, dan, string(axe), o.web+path)
	}
	checkPage(t, o.browser(t), string(axe), o.web+"/ui/login?out")
	if out, errs, code := o.agentCLI("return", lease, "--why", "checked"); code != 0 {
		t.Errorf("returning: %s%s", out, errs)
	}
}
