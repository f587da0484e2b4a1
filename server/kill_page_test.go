package server

import (
	"errors"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"accessbroker.internal/api"
)

// The navigation and the rows of leases offer the kill switch to those who may use it.
func TestKillSwitchIsOffered(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	w.issue(agent, "tickets", "tickets:read")
	for person, may := range map[string]bool{"login/cleo": true, "login/zoe": false} {
		b := newBrowser(t, w)
		b.logIn(person, "/ui/")
		for _, page := range []string{"/ui/", "/ui/access", "/ui/leases"} {
			if _, _, text := b.visit(http.MethodGet, page, ""); strings.Contains(text, `<a href="/ui/kill">Kill switch</a>`) != may {
				t.Errorf("%s, %s: the navigation shows the kill switch: %t, want %t", person, page, !may, may)
			}
		}
		_, _, leases := b.visit(http.MethodGet, "/ui/leases", "")
		row := regexp.MustCompile(`<a href="(/ui/kill\?kind=holder&amp;name=[^"]*)">Kill…`).FindStringSubmatch(leases)
		if (row != nil) != may {
			t.Fatalf("%s: a row's link is %q, want one: %t\n%s", person, row, may, leases)
		}
		if !may {
			if status, _, _ := b.visit(http.MethodGet, "/ui/kill", ""); status != http.StatusForbidden {
				t.Errorf("%s: the form: got %d, want %d", person, status, http.StatusForbidden)
			}
			continue
		}
		status, _, form := b.visit(http.MethodGet, strings.ReplaceAll(row[1], "&amp;", "&"), "")
		for _, want := range []string{
			`<option value="holder" selected>`, `name="name" list="targets" required maxlength="2048" value="` + agent + `"`,
			`<option value="` + agent + `" label="holder">`, `<option value="tickets" label="entitlement">`, `<option value="gone" label="issuer">`, `<option value="acme.test" label="trust domain">`,
		} {
			if status != http.StatusOK || !strings.Contains(form, want) {
				t.Errorf("the form: %d, want %s in\n%s", status, want, form)
			}
		}
	}
}

// A refused name keeps the form, with the message by its field.
func TestKillPageKeepsRefusedForm(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn("login/cleo", "/ui/")
	for _, test := range []struct {
		kind, name, reason, want string
	}{
		{"under", "spiffe://acme.test/agent/*", "incident", `id="name-fault" role="alert">under: &#34;spiffe://acme.test/agent/*&#34; is not a SPIFFE ID: there are no wildcards`},
		{"trust_domain", "ACME.test", "incident", `id="name-fault" role="alert">trust_domain: &#34;ACME.test&#34; is not a trust domain`},
		{"trust_domain", "acme.tst", "incident", `id="name-fault" role="alert">there is no trust domain &#34;acme.tst&#34; in attest.trust_domains: did you mean &#34;acme.test&#34;?`},
		{"entitlement", "ticket", "incident", `did you mean &#34;tickets&#34;?`},
		{"request", "req_x", "incident", `id="name-fault"`},
		{"holder", agent, " ", `id="reason-fault" role="alert">give a reason`},
	} {
		status, _, page := b.visit(http.MethodPost, "/ui/kill", formOf("kind", test.kind, "name", test.name, "reason", test.reason))
		for _, want := range []string{test.want, `value="` + test.name + `"`, `<option value="` + test.kind + `" selected>`, `aria-invalid="true"`} {
			if status < 400 || status > 499 || !strings.Contains(page, want) {
				t.Errorf("%+v: %d, want %s in\n%s", test, status, want, page)
			}
		}
	}
	if blocks := must[[]api.Block](t)(w.as(operator).Blocks(t.Context())); len(blocks) != 0 {
		t.Errorf("got %+v, want no blocks", blocks)
	}
}

// A name that matches nothing needs a second confirmation on the page.
func TestKillPageConfirmsUnmatchedName(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	w.issue(agent, "tickets", "tickets:read")
	b := newBrowser(t, w)
	b.logIn("login/cleo", "/ui/")
	form := formOf("kind", "holder", "name", "spiffe://acme.test/agent/traige", "reason", "incident")
	status, _, page := b.visit(http.MethodPost, "/ui/kill", form)
	digest := regexp.MustCompile(`name="digest" value="([0-9a-f]{64})"`).FindStringSubmatch(page)
	if status != http.StatusOK || digest == nil || !strings.Contains(page, "Nothing matches holder spiffe://acme.test/agent/traige") ||
		!strings.Contains(page, "Did you mean <strong>"+agent+"</strong>?") || !strings.Contains(page, `name="unmatched" value="on" required`) {
		t.Fatalf("preview: %d\n%s", status, page)
	}
	for _, do := range []string{"&do=kill&digest=" + digest[1], "&do=force"} {
		if status, _, page = b.visit(http.MethodPost, "/ui/kill", form+do); status != http.StatusOK || !strings.Contains(page, `name="unmatched"`) {
			t.Errorf("%s: got %d\n%s", do, status, page)
		}
	}
	if blocks := must[[]api.Block](t)(w.as(operator).Blocks(t.Context())); len(blocks) != 0 {
		t.Errorf("got %+v, want no blocks", blocks)
	}
	status, where, page := b.visit(http.MethodPost, "/ui/kill", form+"&do=kill&unmatched=on&digest="+digest[1])
	if status != http.StatusSeeOther || where != "/ui/kill?done=killed" {
		t.Fatalf("confirmed: %d to %q\n%s", status, where, page)
	}
}

// The preview names what it hits and never counts a credential as revoked that cannot be.
func TestKillPreviewNamesHits(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	lease := w.issue(agent, "tickets", "tickets:read").Lease
	w.issue(agent, "gone")
	b := newBrowser(t, w)
	b.logIn("login/cleo", "/ui/")
	_, _, page := b.visit(http.MethodPost, "/ui/kill", formOf("kind", "holder", "name", agent, "reason", "incident"))
	for _, want := range []string{"Of its <strong>2</strong> credentials:", "<strong>1</strong> will be revoked.", "<strong>1</strong> cannot be revoked and expires by itself, the last one", lease, "<td>at once</td>", ", not revocable</td>"} {
		if !strings.Contains(page, want) {
			t.Errorf("want %q in\n%s", want, page)
		}
	}
	seen := must[*api.KillPreview](t)(w.as(operator).Kill(t.Context(), api.Kill{Selector: api.Selector{Holder: agent}, Preview: true}))
	if len(seen.Hits) != 2 || seen.Revocable() != 1 || seen.Hits[1].Lease != lease || seen.Hits[1].Holder != agent || seen.Hits[1].Entitlement != "tickets" ||
		seen.Hits[1].Revocation != "at_expiry" || !seen.Hits[1].WorksUntil.Equal(seen.Hits[1].ExpiresAt) || seen.Hits[0].Revocation != "immediate" {
		t.Errorf("got %+v", seen)
	}
}

// The API refuses a name that matches nothing unless the caller confirms it.
func TestKillAndBlockNeedConfirmation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	op, typo := w.as(operator), api.Selector{Under: "spiffe://acme.test/agnet"}
	seen := must[*api.KillPreview](t)(op.Kill(t.Context(), api.Kill{Selector: typo, Preview: true}))
	if !seen.Unmatched || seen.Near != "spiffe://acme.test/agent" || seen.Leases != 0 {
		t.Errorf("preview: got %+v", seen)
	}
	for _, kill := range []api.Kill{{PreviewDigest: seen.Digest}, {Force: true}} {
		kill.Selector, kill.Reason = typo, "incident"
		if _, err := op.Kill(t.Context(), kill); !errors.Is(err, api.NothingMatches) {
			t.Errorf("%+v: got %v, want %v", kill, err, api.NothingMatches)
		}
	}
	if err := op.Block(t.Context(), api.BlockChange{Selector: typo, Reason: "incident"}); !errors.Is(err, api.NothingMatches) {
		t.Errorf("block: got %v, want %v", err, api.NothingMatches)
	}
	if err := op.Lift(t.Context(), api.BlockChange{Selector: typo, Reason: "over"}); !errors.Is(err, api.NotFound) {
		t.Errorf("lift: got %v, want %v", err, api.NotFound)
	}
	must[*api.KillPreview](t)(op.Kill(t.Context(), api.Kill{Selector: typo, Reason: "incident", PreviewDigest: seen.Digest, Unmatched: true}))
	if err := op.Lift(t.Context(), api.BlockChange{Selector: typo, Reason: "over"}); err != nil {
		t.Error(err)
	}
}

// A wrong holder keeps the filter of the leases.
func TestLeasesPageKeepsRefusedFilter(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn("login/cleo", "/ui/")
	status, _, page := b.visit(http.MethodGet, "/ui/leases?holder=spiffe://acme.test/agent/*", "")
	for _, want := range []string{`value="spiffe://acme.test/agent/*"`, `id="holder-fault" role="alert">`, "there are no wildcards"} {
		if status != http.StatusBadRequest || !strings.Contains(page, want) {
			t.Errorf("got %d, want %q in\n%s", status, want, page)
		}
	}
}
