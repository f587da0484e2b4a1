package server

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker/signal"
)

// disable has the transmitter state that people's accounts were disabled. Its rule holds
// every such event.
func (w *world) disable(t *testing.T, people ...string) {
	t.Helper()
	for _, person := range people {
		e := signal.Event{
			Transmitter: "okta", ID: fmt.Sprintf("%s-%d", person, time.Now().UnixNano()), Kind: signal.KindAccountDisabled, Issued: time.Now(), At: time.Now(),
			Subject: signal.Subject{Account: person}, Reason: "hijacking",
		}
		if got, err := w.cfg.Signals.Apply(t.Context(), e, time.Now()); err != nil || got != signal.Held {
			t.Fatalf("%s: got %q, %v", person, got, err)
		}
	}
}

// driveSignals lists the transmitters, decides on held events and takes a statement back.
func (w *world) driveSignals(t *testing.T) {
	ctx, op := t.Context(), api.NewSignals(w.as(operator))
	w.disable(t, "login/ana")
	list := must[*api.Transmitters](t)(op.Transmitters(ctx)).Transmitters
	if len(list) != 1 || list[0].Name != "okta" || list[0].Provider != "login" || list[0].Held != 1 || list[0].HeldSince.IsZero() || list[0].Stream != "enabled" {
		t.Errorf("got %+v", list)
	}
	held := must[*api.HeldEvents](t)(op.Held(ctx, "okta"))
	if held.Events != 1 || held.People != 1 || len(held.First) != 1 || held.First[0].Person != "login/ana" || held.ByKind["account_disabled"] != 1 {
		t.Errorf("got %+v", held)
	}
	decision := api.HeldDecision{Decision: api.ReleaseEvents, Through: held.Through, Digest: held.Digest, Reason: "confirmed"}
	wrong := decision
	wrong.Digest = strings.Repeat("0", 64)
	if _, err := op.Decide(ctx, "okta", wrong); !errors.Is(err, api.PreviewStale) {
		t.Errorf("another digest: got %v", err)
	}
	if _, err := api.NewSignals(w.as(agent)).Decide(ctx, "okta", decision); !errors.Is(err, api.SessionRequired) {
		t.Errorf("by an agent: got %v", err)
	}
	if _, err := op.Held(ctx, "entra"); !errors.Is(err, api.NotFound) {
		t.Errorf("another transmitter: got %v", err)
	}
	must[*api.HeldEvents](t)(op.Decide(ctx, "okta", decision))
	if err := op.Clear(ctx, "okta", "ana"); !errors.Is(err, api.InvalidRequest) {
		t.Errorf("clearing about no person: got %v", err)
	}
	if err := op.Clear(ctx, "okta", "login/ana"); err != nil {
		t.Error(err)
	}
}

// People who may use the kill switch see the waiting events and decide about exactly
// these, without JavaScript.
func TestHeldEventsPage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b, eve := newBrowser(t, w), newBrowser(t, w)
	b.logIn("login/cleo", "/ui/")
	eve.logIn("login/zoe", "/ui/")
	for _, path := range []string{"/ui/signals", "/ui/signals/okta"} {
		if status, _, _ := eve.visit(http.MethodGet, path, ""); status != http.StatusForbidden {
			t.Errorf("%s by someone else: got %d", path, status)
		}
	}
	if status, _, _ := b.visit(http.MethodGet, "/ui/signals/nobody", ""); status != http.StatusNotFound {
		t.Errorf("an unknown transmitter: got %d", status)
	}
	w.disable(t, "login/ana", "login/zoe")
	if _, _, page := b.visit(http.MethodGet, "/ui/signals", ""); !strings.Contains(page, `<a class="button" href="/ui/signals/okta">`) || !strings.Contains(page, "<strong>2</strong> since") {
		t.Errorf("the list:\n%s", page)
	}
	form := func() url.Values {
		t.Helper()
		_, _, page := b.visit(http.MethodGet, "/ui/signals/okta", "")
		found := regexp.MustCompile(`name="through" value="(\d+)"><input type="hidden" name="digest" value="([0-9a-f]{64})"`).FindStringSubmatch(page)
		if found == nil || !strings.Contains(page, "login/ana") || !strings.Contains(page, "account disabled") || strings.Contains(page, "<script>") {
			t.Fatalf("the page:\n%s", page)
		}
		return url.Values{"through": {found[1]}, "digest": {found[2]}, "do": {"discard"}}
	}
	values := form()
	if status, _, page := b.visit(http.MethodPost, "/ui/signals/okta", values.Encode()); status != http.StatusBadRequest || !strings.Contains(page, `id="reason-fault"`) {
		t.Errorf("without a reason: got %d\n%s", status, page)
	}
	values.Set("reason", "a script of the provider went wrong")
	stale := url.Values{"through": values["through"], "digest": {strings.Repeat("0", 64)}, "do": {"discard"}, "reason": {"x"}}
	if status, _, page := b.visit(http.MethodPost, "/ui/signals/okta", stale.Encode()); status != http.StatusConflict || !strings.Contains(page, "Nothing was decided yet") {
		t.Errorf("a stale page: got %d\n%s", status, page)
	}
	if status, _, _ := eve.visit(http.MethodPost, "/ui/signals/okta", values.Encode()); status != http.StatusForbidden {
		t.Errorf("by someone else: got %d", status)
	}
	if status, where, _ := b.visit(http.MethodPost, "/ui/signals/okta", values.Encode()); status != http.StatusSeeOther || where != "/ui/signals?done=discarded" {
		t.Errorf("got %d %s", status, where)
	}
	if _, _, page := b.visit(http.MethodGet, "/ui/signals?done=discarded", ""); !strings.Contains(page, "The events were discarded.") {
		t.Errorf("afterwards:\n%s", page)
	}
	w.disable(t, "login/cleo", "login/ana")
	if _, _, page := b.visit(http.MethodGet, "/ui/signals/okta", ""); !strings.Contains(page, "about you") || strings.Contains(page, "<button") && strings.Contains(page, `value="release"`) {
		t.Errorf("an event about the viewer:\n%s", page)
	}
}
