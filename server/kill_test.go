package server

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"accessbroker.internal/api"
)

// If the selection changes after the preview, the page shows the new one and offers to
// force the kill.
func TestKillPageStalePreview(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn("login/cleo", "/ui/")
	issue := func() {
		t.Helper()
		if _, _, err := w.as(agent).AskAndCollect(t.Context(), api.Ask{Entitlement: "tickets", Scopes: []string{"tickets:read"}}); err != nil {
			t.Fatal(err)
		}
	}
	issue()
	form := formOf("kind", "holder", "name", agent, "reason", "incident")
	status, _, page := b.visit(http.MethodPost, "/ui/kill", form)
	digest := regexp.MustCompile(`name="digest" value="([0-9a-f]{64})"`).FindStringSubmatch(page)
	if status != http.StatusOK || digest == nil || strings.Contains(page, "has changed") || strings.Contains(page, `value="force"`) {
		t.Fatalf("preview: %d\n%s", status, page)
	}
	issue()
	status, _, page = b.visit(http.MethodPost, "/ui/kill", form+"&do=kill&digest="+digest[1])
	if status != http.StatusOK || !strings.Contains(page, "Nothing was revoked yet") || !strings.Contains(page, `value="force"`) || !strings.Contains(page, "Of its <strong>2</strong> credentials") {
		t.Fatalf("a stale preview: %d\n%s", status, page)
	}
	issue()
	if status, where, page := b.visit(http.MethodPost, "/ui/kill", form+"&do=force"); status != http.StatusSeeOther || where != "/ui/kill?done=killed&expiring=3" {
		t.Fatalf("forced: %d to %q\n%s", status, where, page)
	}
	leases := must[*api.LeasePage](t)(w.as(agent).Leases(t.Context(), api.LeaseFilter{})).Leases
	if len(leases) != 3 {
		t.Errorf("got %d leases, want 3", len(leases))
	}
	for _, l := range leases {
		if l.Status != api.LeaseRevoked {
			t.Errorf("lease %s is %s", l.ID, l.Status)
		}
	}
}

// The kill page ends the leases of the preview and places a block, until the block is
// lifted.
func TestKillPageKillsAndLifts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn("login/cleo", "/ui/")
	lease := w.issue(agent, "tickets", "tickets:read").Lease
	aim := []string{"kind", "holder", "name", agent, "reason", "incident"}
	status, _, page := b.visit(http.MethodPost, "/ui/kill", formOf(aim...))
	digest := regexp.MustCompile(`name="digest" value="([0-9a-f]{64})"`).FindStringSubmatch(page)
	if status != http.StatusOK || digest == nil || !strings.Contains(page, "Of its <strong>1</strong> credential") || !strings.Contains(page, "<strong>1</strong> cannot be revoked") {
		t.Fatalf("preview: %d\n%s", status, page)
	}
	status, where, page := b.visit(http.MethodPost, "/ui/kill", formOf(append(aim, "do", "kill", "digest", digest[1])...))
	if status != http.StatusSeeOther || where != "/ui/kill?done=killed&expiring=1" {
		t.Fatalf("killed: %d to %q\n%s", status, where, page)
	}
	if _, _, page := b.visit(http.MethodGet, where, ""); !strings.Contains(page, "Blocked. 1 credential cannot be revoked and expires by itself.") {
		t.Errorf("the page does not state what happened\n%s", page)
	}
	if l := must[*api.Lease](t)(w.as(agent).Lease(t.Context(), lease)); l.Status != api.LeaseRevoked || l.EndHow != "revoked" {
		t.Errorf("the lease is %+v", l)
	}
	if _, _, page := b.visit(http.MethodGet, where, ""); !strings.Contains(page, "Blocked. ") || !strings.Contains(page, agent) || !strings.Contains(page, "incident") {
		t.Errorf("the page does not show the block\n%s", page)
	}
	if _, _, err := w.as(agent).AskAndCollect(t.Context(), api.Ask{Entitlement: "gone"}); !errors.Is(err, api.Blocked) {
		t.Errorf("while blocked: %v", err)
	}
	lift := formOf("kind", "holder", "name", agent, "reason", "over", "do", "lift")
	if status, where, page = b.visit(http.MethodPost, "/ui/kill", lift); status != http.StatusSeeOther || where != "/ui/kill?done=lifted" {
		t.Fatalf("lifting: %d to %q\n%s", status, where, page)
	}
	if _, _, page := b.visit(http.MethodGet, where, ""); !strings.Contains(page, "The block was lifted") || !strings.Contains(page, "Nothing is blocked") {
		t.Errorf("the page shows a lifted block\n%s", page)
	}
	w.issue(agent, "gone")
}

// For every selector, the kill switch ends exactly the leases of its preview and blocks
// new ones.
func TestKillSelectors(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		selector func(guarded string) api.Selector
		want     api.KillPreview
		blocked  map[string]api.Code // afterwards, by caller
	}{
		"trust domain": {
			func(string) api.Selector { return api.Selector{TrustDomain: "acme.test"} },
			api.KillPreview{Leases: 4, ByIssuer: map[string]int{"token": 3, "gone": 1}, Irrevocable: 3}, map[string]api.Code{agent: api.Blocked},
		},
		"another trust domain": {
			func(string) api.Selector { return api.Selector{TrustDomain: "supplier.test"} },
			api.KillPreview{Leases: 2, ByIssuer: map[string]int{"token": 1, "gone": 1}, Irrevocable: 1}, map[string]api.Code{partner: api.Blocked},
		},
		"issuer": {
			func(string) api.Selector { return api.Selector{Issuer: "gone"} },
			api.KillPreview{Leases: 2, ByIssuer: map[string]int{"gone": 2}}, map[string]api.Code{agent: api.Blocked, partner: api.Blocked},
		},
		"request": {
			func(request string) api.Selector { return api.Selector{Request: request} },
			api.KillPreview{Leases: 2, ByIssuer: map[string]int{"token": 2}, Irrevocable: 2}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			ctx, op := t.Context(), w.as(operator)
			first := w.issue(agent, "tickets", "tickets:read")
			leases := []string{first.Lease, must[*api.Credential](t)(w.as(agent).Collect(ctx, first.Request)).Lease}
			for _, who := range []string{agent, partner} {
				leases = append(leases, w.issue(who, "tickets", "tickets:read").Lease, w.issue(who, "gone").Lease)
			}
			selector := test.selector(first.Request)
			seen := must[*api.KillPreview](t)(op.Kill(ctx, api.Kill{Selector: selector, Preview: true}))
			if seen.Leases != test.want.Leases || !maps.Equal(seen.ByIssuer, test.want.ByIssuer) || seen.Irrevocable != test.want.Irrevocable || seen.Lasting+seen.Beyond != 0 || seen.More || seen.WorkUntil.IsZero() != (seen.Irrevocable == 0) {
				t.Errorf("the preview: %+v", seen)
			}
			if hit := must[*api.KillPreview](t)(op.Kill(ctx, api.Kill{Selector: selector, Reason: "incident", PreviewDigest: seen.Digest})); hit.Leases != seen.Leases || hit.Digest != seen.Digest {
				t.Errorf("the kill returned %+v", hit)
			}
			ended := map[string]int{}
			for _, id := range leases {
				l := must[*api.Lease](t)(op.Lease(ctx, id))
				if l.Status == api.LeaseActive {
					continue
				}
				if ended[l.Issuer]++; l.EndHow != "revoked" || l.Status == api.LeaseRevoked && l.ExpiresAt.After(seen.WorkUntil) {
					t.Errorf("a lease ends after the preview's WorkUntil %s: %+v", seen.WorkUntil, l)
				}
			}
			if !maps.Equal(ended, test.want.ByIssuer) {
				t.Errorf("the kill ended %v", ended)
			}
			for _, who := range []string{agent, partner} {
				_, _, err := w.as(who).AskAndCollect(ctx, api.Ask{Entitlement: "gone"})
				if want := test.blocked[who]; want == "" && err != nil || want != "" && !errors.Is(err, want) {
					t.Errorf("%s, afterwards: %v, want %q", who, err, want)
				}
			}
			if _, err := w.as(agent).Collect(ctx, first.Request); (err == nil) != (name == "another trust domain" || name == "issuer") {
				t.Errorf("collecting again: %v", err)
			}
		})
	}
}

// whoami and the entitlements show blocks, so that callers know before they request.
func TestBlocksAreShown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	shows := func(entitlement bool, caller bool) {
		t.Helper()
		if who := must[*api.Identity](t)(w.as(agent).WhoAmI(t.Context())); who.Blocked != caller {
			t.Errorf("whoami: %+v", who)
		}
		for _, o := range must[[]api.Offer](t)(w.as(agent).Entitlements(t.Context())) {
			if want := caller || entitlement && o.Entitlement == "tickets"; o.Blocked != want {
				t.Errorf("%s is blocked: %t, want %t", o.Entitlement, o.Blocked, want)
			}
		}
	}
	block := func(change func(context.Context, api.BlockChange) error, s api.Selector) {
		t.Helper()
		if err := change(t.Context(), api.BlockChange{Selector: s, Reason: "incident", Unmatched: true}); err != nil {
			t.Fatal(err)
		}
	}
	op, tickets, agents := w.as(operator), api.Selector{Entitlement: "tickets"}, api.Selector{Under: "spiffe://acme.test/agent"}
	shows(false, false)
	block(op.Block, tickets)
	shows(true, false)
	block(op.Block, agents)
	shows(true, true)
	block(op.Lift, tickets)
	block(op.Lift, agents)
	shows(false, false)
}

func TestKillDone(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]string{
		"":                                  "",
		"done=lifted":                       "The block was lifted.",
		"done=killed":                       "Blocked. There were no live credentials.",
		"done=killed&revoking=3":            "Blocked. 3 credentials are being revoked.",
		"done=killed&revoking=1&expiring=2": "Blocked. 1 credential is being revoked. 2 credentials cannot be revoked and expire by themselves.",
		"done=killed&lasting=1":             "Blocked. 1 credential can neither be revoked nor expires: change the system that it opens.",
		"done=killed&lasting=2&expiring=1":  "Blocked. 1 credential cannot be revoked and expires by itself. 2 credentials can neither be revoked nor expire: change the systems that they open.",
		"done=ended&expiring=1":             "The request was ended. 1 credential cannot be revoked and expires by itself.",
		"done=killed&revoking=<b>":          "Blocked. There were no live credentials.",
	} {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if got := killDone(values); got != want {
			t.Errorf("%q: got %q, want %q", query, got, want)
		}
	}
}
