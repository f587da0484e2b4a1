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

// A fakeSlack answers as Slack's Web API does (chat.postMessage, chat.update).
type fakeSlack struct {
	calls []slackCall
	says  string
	about map[string]string // answers, by the message that is changed
}

type slackCall struct {
	path, token string
	body        map[string]any
	raw         string
}

func (f *fakeSlack) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, _ := io.ReadAll(r.Body)
	call := slackCall{path: r.URL.Path, token: r.Header.Get("Authorization"), raw: string(raw)}
	_ = json.Unmarshal(raw, &call.body)
	f.calls = append(f.calls, call)
	if said := f.about[fmt.Sprint(call.body["ts"])]; said != "" {
		_, _ = io.WriteString(w, said)
		return
	}
	if f.says != "" {
		_, _ = io.WriteString(w, f.says)
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
	n.Event = broker.NoticeEscalated // more is asked, and nothing settled
	if _, err := s.Notify(t.Context(), n, r, []string{reference}, noon); err != nil {
		t.Fatal(err)
	}
	paths := []string{"/chat.postMessage", "/chat.update", "/chat.postMessage"}
	for i, call := range fake.calls {
		if call.path != paths[i] || call.token != "Bearer xoxb-1" || call.body["channel"] != "C1" {
			t.Errorf("call %d: %s, %v", i, call.path, call.body["channel"])
		}
		if strings.Contains(call.raw, "mrkdwn") || strings.Contains(call.body["text"].(string), "<!") {
			t.Errorf("call %d: what the requester wrote is read as markup: %s", i, call.raw)
		}
	}
	if fake.calls[1].body["ts"] != reference {
		t.Errorf("it updates %v", fake.calls[1].body["ts"])
	}
}

func TestSlackIncomingWebhook(t *testing.T) {
	fake := &fakeSlack{says: "ok"}
	server := httptest.NewServer(fake)
	defer server.Close()
	s, err := NewSlack(SlackConfig{Webhook: server.URL + "/services/T/B/secret", AllowPrivate: true, Templates: builtInTexts(t)})
	if err != nil {
		t.Fatal(err)
	}
	n, r := waiting()
	if reference, err := s.Notify(t.Context(), n, r, nil, noon); err != nil || reference != "" {
		t.Fatalf("%q, %v", reference, err)
	}
	if fake.calls[0].path != "/services/T/B/secret" || fake.calls[0].token != "" {
		t.Errorf("%+v", fake.calls[0])
	}
}

func TestSlackThatRefuses(t *testing.T) {
	fake := &fakeSlack{says: `{"ok":false,"error":"channel_not_found"}`}
	server := httptest.NewServer(fake)
	n, r := waiting()
	s, err := NewSlack(SlackConfig{Token: "xoxb-secret", Channel: "C1", API: server.URL, AllowPrivate: true, Templates: builtInTexts(t)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Notify(t.Context(), n, r, nil, noon); err == nil || !strings.Contains(err.Error(), "channel_not_found") {
		t.Error(err)
	}
	fake.says = "<html>"
	if _, err := s.Notify(t.Context(), n, r, nil, noon); err == nil {
		t.Error("an answer that is no JSON is taken")
	}
	server.Close()
	if _, err := s.Notify(t.Context(), n, r, nil, noon); err == nil || strings.Contains(err.Error(), "xoxb") {
		t.Error(err)
	}
	for _, bad := range []SlackConfig{{}, {Token: "x"}, {Channel: "C"}, {Token: "x", Channel: "C", Webhook: "https://hooks.slack.com/x"}} {
		if _, err := NewSlack(bad); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

// All messages of a request are changed, but for those that are gone; if all
// are, it is told anew.
func TestSlackMessagesAreUpdated(t *testing.T) {
	gone := `{"ok":false,"error":"message_not_found"}`
	for name, test := range map[string]struct {
		about map[string]string
		want  []string
		fails bool
	}{
		"both":         {nil, []string{"/chat.update 1", "/chat.update 2"}, false},
		"one is gone":  {map[string]string{"1": gone}, []string{"/chat.update 1", "/chat.update 2"}, false},
		"both are":     {map[string]string{"1": gone, "2": gone}, []string{"/chat.update 1", "/chat.update 2", "/chat.postMessage <nil>"}, false},
		"Slack is out": {map[string]string{"1": `{"ok":false,"error":"internal_error"}`}, []string{"/chat.update 1"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			fake := &fakeSlack{about: test.about}
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
				t.Errorf("called %q, not %q", got, test.want)
			}
		})
	}
}
