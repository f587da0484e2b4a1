package server

import (
	"net/http"
	"regexp"
	"strings"
	"testing"

	"accessbroker.internal/api"
)

// What the kill switch would hit changes while somebody looks at it: the page
// shows how it is now, and lets them do it whatever there is.
func TestStalePreviewOnThePage(t *testing.T) {
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
	if status != http.StatusOK || !strings.Contains(page, "Nothing was done yet") || !strings.Contains(page, `value="force"`) || !strings.Contains(page, "<strong>2</strong> live") {
		t.Fatalf("a stale preview: %d\n%s", status, page)
	}
	issue()
	if status, where, page := b.visit(http.MethodPost, "/ui/kill", form+"&do=force"); status != http.StatusSeeOther || where != "/ui/leases?done=killed" {
		t.Fatalf("forced: %d to %q\n%s", status, where, page)
	}
	for _, l := range must[*api.LeasePage](t)(w.as(agent).Leases(t.Context(), api.LeaseFilter{})).Leases {
		if l.Status != api.LeaseRevoked {
			t.Errorf("lease %s is %s", l.ID, l.Status)
		}
	}
}
