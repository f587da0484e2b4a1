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

// hooked is somebody's receiver of webhooks.
type hooked struct {
	told []string // "event group, url"
}

func (h *hooked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var event struct {
		Type string
		Data struct{ Event, Group, URL, Status string }
	}
	if err := json.NewDecoder(r.Body).Decode(&event); err != nil || event.Type != event.Data.Event || r.Header.Get("webhook-signature") == "" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	h.told = append(h.told, event.Type+" "+event.Data.Group+" "+event.Data.Status+" "+event.Data.URL)
}

// withHooks tells channels by webhooks, each at its own receiver.
func (w *world) withHooks(t *testing.T, channels ...string) map[string]*hooked {
	t.Helper()
	all, hooks := map[string]notify.Notifier{}, map[string]*hooked{}
	for _, name := range channels {
		hooks[name] = &hooked{}
		server := httptest.NewServer(hooks[name])
		t.Cleanup(server.Close)
		made, err := notify.NewWebhook(notify.WebhookConfig{Pages: home, URL: server.URL, Secrets: [][]byte{make([]byte, 32)}, AllowPrivate: true})
		if err != nil {
			t.Fatal(err)
		}
		all[name] = made
	}
	w.setNotifiers(t, all)
	return hooks
}

// page is where a message leads.
func page(r *broker.Request) string { return home + "/ui/requests/" + r.ID.String() }

// The group that a request is escalated to is told, sees it from then on, and
// has no vote.
func TestEscalation(t *testing.T) {
	w := peopleWorld(t, `@approval("1 of support") @escalate("15m to security") @lapse_after("1h")`)
	hooks := w.withHooks(t, "hook:support", "hook:security")
	r := w.ask(t, read("tickets:close"))
	w.deliver(t, noon.Add(14*time.Minute))
	if told := hooks["hook:security"].told; len(told) != 0 {
		t.Fatalf("told early: %q", told)
	}
	sees := func(at time.Duration) error {
		_, err := w.broker.Request(t.Context(), broker.Self(approver("dan", noon), noon.Add(at)), r.ID)
		return err
	}
	if err := sees(14 * time.Minute); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("seen early: %v", err)
	}
	w.deliver(t, noon.Add(15*time.Minute))
	if want := []string{"request.escalated security pending " + page(r)}; !slices.Equal(hooks["hook:security"].told, want) {
		t.Fatalf("told %q, not %q", hooks["hook:security"].told, want)
	}
	for _, at := range []time.Duration{15 * time.Minute, 59 * time.Minute} {
		if err := sees(at); err != nil {
			t.Errorf("the link leads nowhere after %s: %v", at, err)
		}
	}
	if _, err := w.vote(t, approver("dan", noon.Add(16*time.Minute)), r, yes, noon.Add(16*time.Minute)); !errors.Is(err, broker.ErrNotApprover) {
		t.Errorf("who is only told votes: %v", err)
	}
}

// What was settled in time concerns nobody else.
func TestNoEscalation(t *testing.T) {
	for name, v := range map[string]broker.Vote{"approved": yes, "denied": {}} {
		t.Run(name, func(t *testing.T) {
			w := peopleWorld(t, `@approval("1 of support") @escalate("15m to security")`)
			hooks := w.withHooks(t, "hook:support", "hook:security")
			r := w.ask(t, read("tickets:close"))
			if _, err := w.vote(t, approver("ben", noon), r, v, noon.Add(14*time.Minute)); err != nil {
				t.Fatal(err)
			}
			w.deliver(t, noon.Add(16*time.Minute))
			if told := hooks["hook:security"].told; len(told) != 0 {
				t.Errorf("told %q", told)
			}
			if _, err := w.broker.Request(t.Context(), broker.Self(approver("dan", noon), noon.Add(16*time.Minute)), r.ID); !errors.Is(err, broker.ErrNotFound) {
				t.Errorf("what was settled is seen: %v", err)
			}
		})
	}
}

// The reviewers hear of broken glass at once, and again when its review is due
// and was not done.
func TestGlassIsTold(t *testing.T) {
	for name, reviewed := range map[string]bool{"overdue": false, "reviewed": true} {
		t.Run(name, func(t *testing.T) {
			w := peopleWorld(t, `@approval("1 of support") @justification("required")`)
			hooks := w.withHooks(t, "hook:support", "hook:security")
			r := w.ask(t, withReason(glass("tickets:read"), "the till is on fire"))
			w.deliver(t, noon)
			events := func() (got []string) {
				for _, told := range hooks["hook:security"].told {
					event, rest, _ := strings.Cut(told, " ")
					if got = append(got, event); !strings.HasSuffix(rest, page(r)) {
						t.Errorf("it leads to %q", rest)
					}
				}
				return got
			}
			want := []string{"break_glass.used"}
			if got := events(); !slices.Equal(got, want) {
				t.Fatalf("told %q", got)
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
				t.Errorf("told %q, not %q", got, want)
			}
		})
	}
}

// Which policies decided is for those who are to speak of a request, and for whom
// policy lets view it: not for whoever else may see it.
func TestWhoSeesPolicies(t *testing.T) {
	viewers := `@id("viewers") permit (principal == Person::"login/vic", action == Action::"view", resource);`
	late := noon.Add(20 * time.Minute)
	w := peopleWorld(t, ``)
	w.adopt(t, closing(`@approval("1 of support") @escalate("15m to security")`)+viewers, testGroups)
	asked := w.ask(t, read("tickets:close"))
	broken := w.ask(t, glass("tickets:read"))
	for name, test := range map[string]struct {
		who  broker.Identity
		r    *broker.Request
		want bool
	}{
		"who is asked":                 {approver("ben", late), asked, true},
		"whom policy lets view it":     {approver("vic", late), asked, true},
		"root":                         {root, asked, true},
		"who answers for its maker":    {approver("ana", late), asked, false},
		"who was told that it waits":   {approver("dan", late), asked, false},
		"its maker":                    {agent(late), asked, false},
		"who reviews it":               {approver("dan", late), broken, true},
		"who would have approved it":   {approver("cleo", late), broken, true},
		"who answers for who broke it": {approver("ana", late), broken, false},
	} {
		if _, err := w.broker.Request(t.Context(), broker.Self(test.who, late), test.r.ID); err != nil {
			t.Errorf("%s does not see the request: %v", name, err)
		}
		if sees := w.broker.SeesPolicies(t.Context(), broker.Self(test.who, late), test.r); sees != test.want {
			t.Errorf("%s sees the policies: %t", name, sees)
		}
	}
	if _, err := w.vote(t, approver("ben", late), asked, yes, late); err != nil {
		t.Fatal(err)
	}
	if !w.broker.SeesPolicies(t.Context(), broker.Self(approver("ben", late), late), asked) {
		t.Error("whoever has approved it does not see them any more")
	}
}
