package server

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// The page of one's own access lists what is done on one's behalf, with a button that ends
// it: the grant and its credentials. Others have no such button.
func TestActingForYou(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) {
		withPeople(c)
		c.SubjectToken = func(_ context.Context, s broker.SubjectToken) (*broker.Delegation, error) {
			now := time.Now()
			return &broker.Delegation{Subject: broker.Identity{
				ID: asker, Kind: broker.KindPerson,
				Proof: broker.Proof{Method: broker.MethodIDJAG, SHA256: [32]byte{1}, Expires: now.Add(time.Hour)},
			}}, nil
		}
	})
	issued, _, err := w.as(agent).AskAndCollect(t.Context(), api.Ask{
		Entitlement: "tickets", Scopes: []string{"tickets:read"}, Justification: "incident", SubjectToken: "e30.e30.e30", SubjectType: api.TokenTypeIDJAG,
	})
	if err != nil {
		t.Fatal(err)
	}
	ivy, cleo := newBrowser(t, w), newBrowser(t, w)
	ivy.logIn(asker, "/ui/")
	cleo.logIn("login/cleo", "/ui/")
	at := "/ui/requests/" + issued.Request
	button := `action="` + at + `"><button name="do" value="withdraw"`
	if page := ivy.read("/ui/access"); !strings.Contains(page, "Acting for you") || !strings.Contains(page, button) {
		t.Fatalf("no button %s: %s", button, page)
	}
	if page := cleo.read(at); !strings.Contains(page, "on behalf of <strong>login/ivy</strong>") || strings.Contains(page, `value="withdraw"`) {
		t.Errorf("the page of another person: %s", page)
	}
	if status, _, _ := cleo.visit(http.MethodPost, at, formOf("do", "withdraw")); status != http.StatusNotFound {
		t.Errorf("another person ends it: got %d, want 404", status)
	}
	if status, where, page := ivy.visit(http.MethodPost, at, formOf("do", "withdraw")); status != http.StatusSeeOther || where != at+"?done=withdraw" {
		t.Fatalf("%d to %q: %s", status, where, page)
	}
	if page := ivy.read(at + "?done=withdraw"); !strings.Contains(page, "You ended this request and what it led to.") || strings.Contains(page, `value="withdraw"`) {
		t.Errorf("the page afterwards: %s", page)
	}
	if page := ivy.read("/ui/access"); !strings.Contains(page, at) || strings.Contains(page, button) {
		t.Errorf("the list afterwards: %s", page)
	}
	if l := must[*api.Lease](t)(w.as(agent).Lease(t.Context(), issued.Lease)); l.Status != "revoked" || l.EndHow != "revoked" {
		t.Errorf("the credential: got %s, %s", l.Status, l.EndHow)
	}
}
