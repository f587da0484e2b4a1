package server

import (
	"net/http"
	"strings"
	"testing"

	"accessbroker.internal/api"
)

// Each form is offered on its page, has its effect, and leads to a confirmation.
func TestForms(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	ivy, cleo, ben := newBrowser(t, w), newBrowser(t, w), newBrowser(t, w)
	ivy.logIn(asker, "/ui/")
	cleo.logIn("login/cleo", "/ui/")
	ben.logIn("login/ben", "/ui/")
	lease := func(c *api.Credential) func() string {
		return func() string {
			l := must[*api.Lease](t)(w.as(operator).Lease(t.Context(), c.Lease))
			return l.Status + " " + l.EndHow
		}
	}
	request := func(id string, what func(*api.Request) string) func() string {
		return func() string { return what(must[*api.Request](t)(w.as(auditor).Request(t.Context(), id))) }
	}
	mine, others := w.issue(asker, "tickets", "tickets:read"), w.issue(agent, "tickets", "tickets:read")
	ask := func(who string, breakGlass bool) *api.Request {
		return must[*api.Request](t)(w.as(who).Ask(t.Context(), api.Ask{Entitlement: "guarded", Scopes: []string{"read"}, BreakGlass: breakGlass, Justification: "the shop is down"}))
	}
	withdrawn, good, bad := ask(asker, false), ask(agent, true), ask(asker, true)
	verdict := func(r *api.Request) string {
		if r.Review.ClosedAt.IsZero() || len(r.Review.Given) != 1 {
			return "open"
		}
		g := r.Review.Given[0]
		return g.Verdict + " by " + g.Person + ": " + g.Comment
	}
	for name, test := range map[string]struct {
		by           *browser
		offered, at  string // the page with the form, and its action
		form         string
		leads, shows string
		is           func() string
		become       string
	}{
		"return": {ivy, "/ui/access", "/ui/leases/" + mine.Lease, formOf("reason", "done"), "/ui/access?done=returned", "You returned the credential.", lease(mine), "revoked returned"},
		"revoke": {cleo, "/ui/leases", "/ui/leases/" + others.Lease, formOf("reason", "incident"), "/ui/requests/" + others.Request, "revoked", lease(others), "revoked revoked"},
		"withdraw": {
			ivy, "/ui/requests/" + withdrawn.ID, "", formOf("do", "withdraw"), "/ui/requests/" + withdrawn.ID + "?done=withdraw", "You withdrew this request.",
			request(withdrawn.ID, func(r *api.Request) string { return r.Status }), api.StatusWithdrawn,
		},
		"justified": {
			ben, "/ui/requests/" + good.ID, "", formOf("do", "justified", "digest", good.Digest, "comment", "it was"), "/ui/requests/" + good.ID + "?done=justified", "Your review is recorded.",
			request(good.ID, verdict), "justified by login/ben: it was",
		},
		"unjustified": {
			cleo, "/ui/requests/" + bad.ID, "", formOf("do", "unjustified", "digest", bad.Digest, "comment", "it was up"), "/ui/requests/" + bad.ID + "?done=unjustified", "Your review is recorded.",
			request(bad.ID, verdict), "unjustified by login/cleo: it was up",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, page := test.by.visit(http.MethodGet, test.offered, "")
			button := `action="` + test.at + `"`
			if test.at == "" {
				test.at, button = test.offered, `name="do" value="`+name+`"`
			}
			if !strings.Contains(page, button) {
				t.Errorf("the page does not offer %s\n%s", button, page)
			}
			if status, where, page := test.by.visit(http.MethodPost, test.at, test.form); status != http.StatusSeeOther || where != test.leads {
				t.Fatalf("%d to %q\n%s", status, where, page)
			}
			if status, _, page := test.by.visit(http.MethodGet, test.leads, ""); status != http.StatusOK || !strings.Contains(page, test.shows) || strings.Contains(page, button) {
				t.Errorf("got %d, want %q and not %s\n%s", status, test.shows, button, page)
			}
			if got := test.is(); got != test.become {
				t.Errorf("got %q, want %q", got, test.become)
			}
		})
	}
}
