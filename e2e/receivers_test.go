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

// receivers are where the broker tells people: a webhook whose signatures are
// checked by the standard's own library, and a mail server.
type receivers struct {
	hook *httptest.Server
	mail net.Listener

	mu     sync.Mutex
	failed int // webhooks that were answered with an error, to be told again
	events []event
	mails  []string
}

// An event is what a webhook is told.
type event struct {
	id   string // of the delivery
	Type string `json:"type"`
	Data struct {
		Request string `json:"request"`
		URL     string `json:"url"`
		Status  string `json:"status"`
	} `json:"data"`
}

func startReceivers(t *testing.T) *receivers {
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
			t.Errorf("a webhook that does not hold: %v", err)
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

// takeMail speaks as much of SMTP (RFC 5321) as taking a mail needs.
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

// file is what the operator's file says of them.
func (r *receivers) file() string {
	return fmt.Sprintf(`notify:
  webhook:
    support: {url: "%s/hook", secret_files: [hook.secret], allow_private: true}
  mail:
    support: {host: 127.0.0.1, port: %d, from: "broker@acme.test", to: ["support@acme.test"], tls: none, allow_private: true}
`, r.hook.URL, r.mail.Addr().(*net.TCPAddr).Port)
}

// testTold has people told that something waits for them, although their
// receiver failed at first, and then that it was decided.
func testTold(t *testing.T, o *office) {
	r := o.asks(t, "--scope", "tickets:close", "--why", "to be told")
	told := func(kind string) func() error {
		return func() error {
			o.told.mu.Lock()
			defer o.told.mu.Unlock()
			hooks, mails := 0, 0
			for _, e := range o.told.events {
				if e.Type == kind && e.Data.Request == r.ID && e.Data.URL == o.web+"/ui/requests/"+r.ID {
					hooks++
				}
			}
			for _, text := range o.told.mails {
				m, err := mail.ReadMessage(strings.NewReader(text))
				if err != nil {
					return err
				}
				body, err := io.ReadAll(quotedprintable.NewReader(m.Body))
				if err != nil {
					return err
				}
				if strings.Contains(string(body), "It is "+strings.TrimPrefix(kind, "request.")+": "+o.web+"/ui/requests/"+r.ID) {
					mails++
				}
			}
			if hooks != 1 || mails != 1 {
				return fmt.Errorf("%d webhooks and %d mails", hooks, mails)
			}
			return nil
		}
	}
	eventually(t, "being told that it waits", time.Minute, told("request.pending"))
	home := t.TempDir()
	o.terminalLogin(t, home, "ben")
	if out, errs, code := o.inTerminal(home, "approve", r.ID, "--yes"); code != 0 {
		t.Fatalf("approving: %d %s %s", code, out, errs)
	}
	eventually(t, "being told that it is approved", time.Minute, told("request.approved"))
	if _, errs, code := o.asAgent("collect", r.ID, "-o", "json"); code != 0 {
		t.Fatalf("collecting: %s", errs)
	}
	o.told.mu.Lock()
	defer o.told.mu.Unlock()
	if o.told.failed != 1 {
		t.Error("no webhook failed, so none was told again")
	}
	if secrets := strings.Join(o.told.mails, ""); strings.Contains(secrets, "abs_") || strings.Contains(secrets, "eyJ") {
		t.Error("a mail holds a token")
	}
	if r.Status != api.StatusPending {
		t.Errorf("it was %s at first", r.Status)
	}
}
