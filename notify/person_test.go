package notify

import (
	"errors"
	"io"
	"mime/quotedprintable"
	"net/mail"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/broker"
)

func newPasskey() *broker.Notice {
	return &broker.Notice{
		ID: broker.NoticeID{9}, Event: broker.NoticePasskey, Channel: broker.PeopleChannel, Person: "login/ben", Address: "ben@home.test",
		Created: noon, Counts: noon.Add(24 * time.Hour),
	}
}

// A notice to one person is sent to that person, not to the recipients of the
// channel.
func TestMailToOnePerson(t *testing.T) {
	s := newMailServer(t, "", false)
	m, err := NewMail(s.config(t))
	if err != nil {
		t.Fatal(err)
	}
	pending, r := waiting()
	pending.Channel, pending.Address = broker.PeopleChannel, "mia@home.test"
	for _, test := range []struct {
		n    *broker.Notice
		r    *broker.Request
		want []string
	}{
		{newPasskey(), nil, []string{
			"At 2026-06-01 12:00:00Z, a passkey was enrolled for you, login/ben,", "From 2026-06-02 12:00:00Z on", "the passkey at https://broker.acme.test/ui/passkeys\r\n", "inform the operators of the broker",
		}},
		{pending, r, []string{"https://broker.acme.test/ui/requests/" + r.ID.String()}},
	} {
		if _, err := m.Notify(t.Context(), test.n, test.r, nil, noon); err != nil {
			t.Fatal(err)
		}
		envelope, message, _ := strings.Cut(<-s.messages, "From: ")
		if strings.Count(envelope, "RCPT TO:") != 1 || !strings.Contains(envelope, "RCPT TO:<"+test.n.Address+">") {
			t.Errorf("got envelope\n%s", envelope)
		}
		parsed, err := mail.ReadMessage(strings.NewReader("From: " + message))
		if err != nil {
			t.Fatal(err)
		}
		if to := parsed.Header.Get("To"); to != "<"+test.n.Address+">" || parsed.Header.Get("Subject") == "" {
			t.Errorf("got to %q and subject %q", to, parsed.Header.Get("Subject"))
		}
		body, err := io.ReadAll(quotedprintable.NewReader(parsed.Body))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range test.want {
			if !strings.Contains(string(body), want) {
				t.Errorf("the body lacks %q:\n%s", want, body)
			}
		}
	}
}

// An address that does not work must not delay the mail of other people.
func TestMailToABadAddressIsDropped(t *testing.T) {
	for name, test := range map[string]struct{ refuse, address string }{
		"an unknown address": {"RCPT", "ben@home.test"},
		"no address":         {"", "ben"},
		"two addresses":      {"", "ben@home.test, evil@acme.test"},
		"line breaks":        {"", "ben@home.test>\r\nRCPT TO:<evil@acme.test"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newMailServer(t, test.refuse, false)
			m, err := NewMail(s.config(t))
			if err != nil {
				t.Fatal(err)
			}
			n := newPasskey()
			n.Address = test.address
			if _, err := m.Notify(t.Context(), n, nil, nil, noon); !errors.Is(err, ErrChannelGone) {
				t.Error(err)
			}
			if len(s.messages) > 0 {
				t.Error("a mail was sent")
			}
		})
	}
}
