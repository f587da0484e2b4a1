package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"mime/quotedprintable"
	"net"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"strings"
	"sync"
	"testing"
	"time"

	webhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"accessbroker.internal/api"
)

const hookSecret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"

// receivers get the broker's notifications: a webhook, whose signatures are
// verified by the library of Standard Webhooks, and a mail server.
type receivers struct {
	hook *httptest.Server
	mail net.Listener

	mu     sync.Mutex
	failed int // deliveries that got an error, so that they are repeated
	events []event
	mails  []string
}

// An event is the body of a webhook.
type event struct {
	id   string // of the delivery
	Type string `json:"type"`
	Data struct {
		Request string `json:"request"`
		URL     string `json:"url"`
		Status  string `json:"status"`
	} `json:"data"`
}

func startReceivers(t testing.TB) *receivers {
	t.Helper()
	verifier, err := webhooks.NewWebhook(hookSecret)
	if err != nil {
		t.Fatal(err)
	}
	r := &receivers{}
	r.hook = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err == nil {
			err = verifier.Verify(body, req.Header)
		}
		e := event{id: req.Header.Get("webhook-id")}
		if err == nil {
			err = json.Unmarshal(body, &e)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		switch {
		case err != nil:
			t.Errorf("a webhook does not verify: %v", err)
			w.WriteHeader(http.StatusBadRequest)
		case r.failed == 0:
			r.failed++
			w.WriteHeader(http.StatusInternalServerError)
		default:
			r.events = append(r.events, e)
		}
	}))
	t.Cleanup(r.hook.Close)
	if r.mail, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.mail.Close() })
	go func() {
		for {
			conn, err := r.mail.Accept()
			if err != nil {
				return
			}
			go r.takeMail(conn)
		}
	}()
	return r
}

// takeMail implements the part of SMTP (RFC 5321) that receiving a mail needs.
func (r *receivers) takeMail(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	in := bufio.NewScanner(conn)
	fmt.Fprint(conn, "220 mail\r\n")
	for in.Scan() {
		switch verb, _, _ := strings.Cut(in.Text(), " "); verb {
		case "EHLO", "MAIL", "RCPT":
			fmt.Fprint(conn, "250 fine\r\n")
		case "DATA":
			fmt.Fprint(conn, "354 go on\r\n")
			var text strings.Builder
			for in.Scan() && in.Text() != "." {
				text.WriteString(in.Text() + "\r\n")
			}
			r.mu.Lock()
			r.mails = append(r.mails, text.String())
			r.mu.Unlock()
			fmt.Fprint(conn, "250 taken\r\n")
		case "QUIT":
			fmt.Fprint(conn, "221 bye\r\n")
			return
		default:
			fmt.Fprint(conn, "500 what\r\n")
		}
	}
}

// file returns the receivers' part of the operator's file.
func (r *receivers) file() string {
	return fmt.Sprintf(`notify:
  webhook:
    support: {url: "%s/hook", secret_files: [hook.secret], allow_private: true}
  mail:
    support: {host: 127.0.0.1, port: %d, from: "broker@acme.test", to: ["support@acme.test"], tls: none, allow_private: true}
`, r.hook.URL, r.mail.Addr().(*net.TCPAddr).Port)
}

// testNotifications notifies approvers of a pending request, although the first
// delivery fails, and then of its approval.
func testNotifications(t *testing.T, o *office) {
	r := o.fileRequest(t, "--scope", "tickets:close", "--why", "to notify approvers")
	notified := func(kind string) func() error {
		return func() error {
			o.receivers.mu.Lock()
			defer o.receivers.mu.Unlock()
			hooks, mails := 0, 0
			for _, e := range o.receivers.events {
				if e.Type == kind && e.Data.Request == r.ID && e.Data.URL == o.web+"/ui/requests/"+r.ID {
					hooks++
				}
			}
			for _, text := range o.receivers.mails {
				m, err := mail.ReadMessage(strings.NewReader(text))
				if err != nil {
					return err
				}
				body, err := io.ReadAll(quotedprintable.NewReader(m.Body))
				if err != nil {
					return err
				}
				if strings.Contains(string(body), "Status "+strings.TrimPrefix(kind, "request.")+": "+o.web+"/ui/requests/"+r.ID) {
					mails++
				}
			}
			if hooks != 1 || mails != 1 {
				return fmt.Errorf("%d webhooks and %d mails", hooks, mails)
			}
			return nil
		}
	}
	eventually(t, "the notification of the pending request", 2*time.Minute, notified("request.pending"))
	home := t.TempDir()
	o.terminalLogin(t, home, "ben")
	if out, errs, code := o.personCLI(home, "approve", r.ID, "--yes"); code != 0 {
		t.Fatalf("approving: %d %s %s", code, out, errs)
	}
	eventually(t, "the notification of the approval", 2*time.Minute, notified("request.approved"))
	if _, errs, code := o.agentCLI("collect", r.ID, "-o", "json"); code != 0 {
		t.Fatalf("collecting: %s", errs)
	}
	o.receivers.mu.Lock()
	defer o.receivers.mu.Unlock()
	if o.receivers.failed != 1 {
		t.Error("no webhook failed, so none was repeated")
	}
	if secrets := strings.Join(o.receivers.mails, ""); strings.Contains(secrets, "abs_") || strings.Contains(secrets, "eyJ") {
		t.Error("a mail contains a token")
	}
	if r.Status != api.StatusPending {
		t.Errorf("the request was %s at first", r.Status)
	}
}
