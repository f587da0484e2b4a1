package notify

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"accessbroker.internal/broker"
)

// A fakeSlack answers like Slack's Web API (chat.postMessage, chat.update).
type fakeSlack struct {
	calls   []slackCall
	answer  string            // to every other call; empty: ok
	answers map[string]string // by the updated message
}

type slackCall struct {
	path, token string
	body        map[string]any
	raw         string
}

func (f *fakeSlack) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	call := slackCall{path: r.URL.Path, token: r.Header.Get("Authorization"), raw: string(raw)}
	if err != nil || json.Unmarshal(raw, &call.body) != nil {
		http.Error(w, "not JSON", http.StatusBadRequest)
		return
	}
	f.calls = append(f.calls, call)
	if answer := f.answers[fmt.Sprint(call.body["ts"])]; answer != "" {
		_, _ = io.WriteString(w, answer)
		return
	}
	if f.answer != "" {
		_, _ = io.WriteString(w, f.answer)
		return
	}
	fmt.Fprintf(w, `{"ok":true,"channel":"C1","ts":"1700000000.00000%d"}`, len(f.calls))
}

func TestSlackMessageIsUpdated(t *testing.T) {
	fake := &fakeSlack{}
	server := httptest.NewServer(fake)
	defer server.Close()
	s, err := NewSlack(SlackConfig{Pages: "https://broker.acme.test", Token: "xoxb-1", Channel: "C1", API: server.URL, AllowPrivate: true, Templates: builtInTexts(t)})
	if err != nil {
		t.Fatal(err)
	}
	n, r := waiting()
	r.Justification = "<!channel> see <https://evil.test|the broker> & approve"
	r.Entitlement = "<!here>"
	reference, err := s.Notify(t.Context(), n, r, nil, noon)
	if err != nil || reference != "1700000000.000001" {
		t.Fatalf("reference %q, %v", reference, err)
	}
	r.Status = broker.RequestApproved
	n.Event = broker.NoticeApproved
	if _, err := s.Notify(t.Context(), n, r, []string{reference}, noon); err != nil {
		t.Fatal(err)
	}
	n.Event = broker.NoticeEscalated // reports no decision
	if _, err := s.Notify(t.Context(), n, r, []string{reference}, noon); err != nil {
		t.Fatal(err)
	}
	paths := []string{"/chat.postMessage", "/chat.update", "/chat.postMessage"}
	if len(fake.calls) != len(paths) {
		t.Fatalf("got %d calls, want %d", len(fake.calls), len(paths))
	}
	for i, call := range fake.calls {
		if call.path != paths[i] || call.token != "Bearer xoxb-1" || call.body["channel"] != "C1" {
			t.Errorf("call %d: %s, %v", i, call.path, call.body["channel"])
		}
		if strings.Contains(call.raw, "mrkdwn") || strings.Contains(call.body["text"].(string), "<!") {
			t.Errorf("call %d: the requester's text is markup: %s", i, call.raw)
		}
	}
	if fake.calls[1].body["ts"] != reference {
		t.Errorf("updated message %v, want %s", fake.calls[1].body["ts"], reference)
	}
}

func TestSlackIncomingWebhook(t *testing.T) {
	fake := &fakeSlack{answer: "ok"}
	server := httptest.NewServer(fake)
	defer server.Close()
	s, err := NewSlack(SlackConfig{Webhook: server.URL + "/services/T/B/secret", AllowPrivate: true, Templates: builtInTexts(t)})
	if err != nil {
		t.Fatal(err)
	}
	n, r := waiting()
	if reference, err := s.Notify(t.Context(), n, r, nil, noon); err != nil || reference != "" {
		t.Fatalf("got reference %q, %v", reference, err)
	}
	if fake.calls[0].path != "/services/T/B/secret" || fake.calls[0].token != "" {
		t.Errorf("got call %+v", fake.calls[0])
	}
}

func TestSlackErrors(t *testing.T) {
	fake := &fakeSlack{answer: `{"ok":false,"error":"channel_not_found"}`}
	server := httptest.NewServer(fake)
	n, r := waiting()
	s, err := NewSlack(SlackConfig{Token: "xoxb-secret", Channel: "C1", API: server.URL, AllowPrivate: true, Templates: builtInTexts(t)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Notify(t.Context(), n, r, nil, noon); err == nil || !strings.Contains(err.Error(), "channel_not_found") {
		t.Error(err)
	}
	fake.answer = "<html>"
	if _, err := s.Notify(t.Context(), n, r, nil, noon); err == nil {
		t.Error("an answer that is not JSON was accepted")
	}
	server.Close()
	if _, err := s.Notify(t.Context(), n, r, nil, noon); err == nil || strings.Contains(err.Error(), "xoxb") {
		t.Error(err)
	}
	for _, bad := range []SlackConfig{{}, {Token: "x"}, {Channel: "C"}, {Token: "x", Channel: "C", Webhook: "https://hooks.slack.com/x"}} {
		if _, err := NewSlack(bad); err == nil {
			t.Errorf("NewSlack accepted %+v", bad)
		}
	}
}

// A decision updates all messages about the request that still exist. If none does,
// it is posted as a new message.
func TestSlackUpdatesExistingMessages(t *testing.T) {
	gone := `{"ok":false,"error":"message_not_found"}`
	for name, test := range map[string]struct {
		answers map[string]string
		want    []string
		fails   bool
	}{
		"both exist":  {nil, []string{"/chat.update 1", "/chat.update 2"}, false},
		"one exists":  {map[string]string{"1": gone}, []string{"/chat.update 1", "/chat.update 2"}, false},
		"none exists": {map[string]string{"1": gone, "2": gone}, []string{"/chat.update 1", "/chat.update 2", "/chat.postMessage <nil>"}, false},
		"an error":    {map[string]string{"1": `{"ok":false,"error":"internal_error"}`}, []string{"/chat.update 1"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			fake := &fakeSlack{answers: test.answers}
			server := httptest.NewServer(fake)
			defer server.Close()
			s, err := NewSlack(SlackConfig{Token: "xoxb-1", Channel: "C1", API: server.URL, AllowPrivate: true, Templates: builtInTexts(t)})
			if err != nil {
				t.Fatal(err)
			}
			n, r := waiting()
			r.Status, n.Event = broker.RequestApproved, broker.NoticeApproved
			if _, err := s.Notify(t.Context(), n, r, []string{"1", "2"}, noon); (err != nil) != test.fails {
				t.Error(err)
			}
			var got []string
			for _, call := range fake.calls {
				got = append(got, fmt.Sprintf("%s %v", call.path, call.body["ts"]))
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got calls %q, want %q", got, test.want)
			}
		})
	}
}
