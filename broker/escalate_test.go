package broker_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/notify"
)

// hookReceiver records the webhook messages that it receives.
type hookReceiver struct {
	got []string // "event group status url"
}

func (h *hookReceiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var event struct {
		Type string
		Data struct{ Event, Group, URL, Status string }
	}
	if err := json.NewDecoder(r.Body).Decode(&event); err != nil || event.Type != event.Data.Event || r.Header.Get("webhook-signature") == "" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	h.got = append(h.got, event.Type+" "+event.Data.Group+" "+event.Data.Status+" "+event.Data.URL)
}

// withHooks gives each channel a webhook with a receiver of its own.
func (w *world) withHooks(t *testing.T, channels ...string) map[string]*hookReceiver {
	t.Helper()
	all, hooks := map[string]notify.Notifier{}, map[string]*hookReceiver{}
	for _, name := range channels {
		hooks[name] = &hookReceiver{}
		server := httptest.NewServer(hooks[name])
		t.Cleanup(server.Close)
		webhook, err := notify.NewWebhook(notify.WebhookConfig{Pages: home, URL: server.URL, Secrets: [][]byte{make([]byte, 32)}, AllowPrivate: true})
		if err != nil {
			t.Fatal(err)
		}
		all[name] = webhook
	}
	w.setNotifiers(t, all)
	return hooks
}

// page returns the URL of a request that messages link to.
func page(r *broker.Request) string { return home + "/ui/requests/" + r.ID.String() }

// The group that a request is escalated to is notified, sees the request from then
// on, and cannot vote.
func TestEscalation(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support") @escalate("15m to security") @lapse_after("1h")`)
	hooks := w.withHooks(t, "hook:support", "hook:security")
	r := w.ask(t, read("tickets:close"))
	w.deliver(t, noon.Add(14*time.Minute))
	if got := hooks["hook:security"].got; len(got) != 0 {
		t.Fatalf("before the escalation: got %q, want no messages", got)
	}
	sees := func(at time.Duration) error {
		_, err := w.broker.Request(t.Context(), broker.Self(approver("dan", noon), noon.Add(at)), r.ID)
		return err
	}
	if err := sees(14 * time.Minute); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("reading before the escalation: got %v, want %v", err, broker.ErrNotFound)
	}
	w.deliver(t, noon.Add(15*time.Minute))
	if want := []string{"request.escalated security pending " + page(r)}; !slices.Equal(hooks["hook:security"].got, want) {
		t.Fatalf("got %q, want %q", hooks["hook:security"].got, want)
	}
	for _, at := range []time.Duration{15 * time.Minute, 59 * time.Minute} {
		if err := sees(at); err != nil {
			t.Errorf("reading the linked request after %s: got %v, want no error", at, err)
		}
	}
	if _, err := w.vote(t, approver("dan", noon.Add(16*time.Minute)), r, yes, noon.Add(16*time.Minute)); !errors.Is(err, broker.ErrNotApprover) {
		t.Errorf("a vote by the notified group: got %v, want %v", err, broker.ErrNotApprover)
	}
}

// A request that is decided in time is not escalated.
func TestNoEscalation(t *testing.T) {
	for name, v := range map[string]broker.Vote{"approved": yes, "denied": denial} {
		t.Run(name, func(t *testing.T) {
			w := peopleWorld(t, `@approval("1 of support") @escalate("15m to security")`)
			hooks := w.withHooks(t, "hook:support", "hook:security")
			r := w.ask(t, read("tickets:close"))
			if _, err := w.vote(t, approver("ben", noon), r, v, noon.Add(14*time.Minute)); err != nil {
				t.Fatal(err)
			}
			w.deliver(t, noon.Add(16*time.Minute))
			if got := hooks["hook:security"].got; len(got) != 0 {
				t.Errorf("got %q, want no messages", got)
			}
			if _, err := w.broker.Request(t.Context(), broker.Self(approver("dan", noon), noon.Add(16*time.Minute)), r.ID); !errors.Is(err, broker.ErrNotFound) {
				t.Errorf("reading the decided request: got %v, want %v", err, broker.ErrNotFound)
			}
		})
	}
}

// The reviewers are notified of a break-glass use at once, and again if its review
// is overdue.
func TestBreakGlassNotifiesReviewers(t *testing.T) {
	for name, reviewed := range map[string]bool{"overdue": false, "reviewed": true} {
		t.Run(name, func(t *testing.T) {
			w := peopleWorld(t, `@approval("1 of support") @justification("required")`)
			hooks := w.withHooks(t, "hook:support", "hook:security")
			r := w.ask(t, withReason(breakGlass("tickets:read"), "the till is on fire"))
			w.deliver(t, noon)
			events := func() (got []string) {
				for _, message := range hooks["hook:security"].got {
					event, rest, _ := strings.Cut(message, " ")
					if got = append(got, event); !strings.HasSuffix(rest, page(r)) {
						t.Errorf("got message %q, want it to end with %s", message, page(r))
					}
				}
				return got
			}
			want := []string{"break_glass.used"}
			if got := events(); !slices.Equal(got, want) {
				t.Fatalf("got events %q, want %q", got, want)
			}
			if reviewed {
				want = append(want, "break_glass.reviewed")
				for _, who := range []string{"dan", "cleo"} {
					if _, err := w.broker.Review(t.Context(), broker.Self(approver(who, noon), noon), r.ID, broker.Vote{Approve: true, Digest: r.Digest, Comment: "it was"}); err != nil {
						t.Fatal(err)
					}
				}
			} else {
				want = append(want, "break_glass.overdue")
			}
			w.deliver(t, noon.Add(59*time.Minute))
			w.deliver(t, noon.Add(61*time.Minute))
			if got := events(); !slices.Equal(got, want) {
				t.Errorf("got events %q, want %q", got, want)
			}
		})
	}
}

// The deciding policies are shown to approvers, reviewers and people whom policy
// permits to view the request, but not to everyone who may see it.
func TestWhoSeesPolicies(t *testing.T) {
	viewers := `@id("viewers") permit (principal == Person::"login/vic", action == Action::"view", resource);`
	late := noon.Add(20 * time.Minute)
	w := peopleWorld(t, ``)
	w.adopt(t, closePolicies(`@approval("1 of support") @escalate("15m to security")`)+viewers, testGroups)
	asked := w.ask(t, read("tickets:close"))
	broken := w.ask(t, breakGlass("tickets:read"))
	for name, test := range map[string]struct {
		who  broker.Identity
		r    *broker.Request
		want bool
	}{
		"an approver":                         {approver("ben", late), asked, true},
		"a permitted viewer":                  {approver("vic", late), asked, true},
		"root":                                {root, asked, true},
		"the accountable person":              {approver("ana", late), asked, false},
		"the escalation group":                {approver("dan", late), asked, false},
		"the requester":                       {agent(late), asked, false},
		"a reviewer":                          {approver("dan", late), broken, true},
		"an approver turned reviewer":         {approver("cleo", late), broken, true},
		"the accountable person, break-glass": {approver("ana", late), broken, false},
	} {
		if _, err := w.broker.Request(t.Context(), broker.Self(test.who, late), test.r.ID); err != nil {
			t.Errorf("%s reading the request: got %v, want no error", name, err)
		}
		if sees := w.broker.SeesPolicies(t.Context(), broker.Self(test.who, late), test.r); sees != test.want {
			t.Errorf("%s sees the policies: got %t, want %t", name, sees, test.want)
		}
	}
	if _, err := w.vote(t, approver("ben", late), asked, yes, late); err != nil {
		t.Fatal(err)
	}
	if !w.broker.SeesPolicies(t.Context(), broker.Self(approver("ben", late), late), asked) {
		t.Error("after approving: got hidden policies, want them shown")
	}
}
