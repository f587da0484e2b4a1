package notify

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/http/httptest"
	"net/mail"
	"strings"
	"testing"
)

// A mailServer accepts mail by SMTP (RFC 5321).
type mailServer struct {
	port     int
	roots    *x509.CertPool
	messages chan string // accepted mails, each after its envelope
}

// newMailServer starts a mail server. It answers 550 to the verb refuse. With noTLS,
// it does not offer STARTTLS.
func newMailServer(t *testing.T, refuse string, noTLS bool) *mailServer {
	t.Helper()
	borrowed := httptest.NewTLSServer(nil) // for its certificate
	t.Cleanup(borrowed.Close)
	s := &mailServer{roots: x509.NewCertPool(), messages: make(chan string, 10)}
	s.roots.AddCert(borrowed.Certificate())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	s.port = l.Addr().(*net.TCPAddr).Port
	config := &tls.Config{Certificates: borrowed.TLS.Certificates}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(conn, config, refuse, noTLS)
		}
	}()
	return s
}

func (s *mailServer) serve(conn net.Conn, config *tls.Config, refuse string, noTLS bool) {
	defer func() { _ = conn.Close() }()
	r, secure, envelope := bufio.NewReader(conn), false, ""
	fmt.Fprint(conn, "220 mail\r\n")
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSpace(line)
		verb, _, _ := strings.Cut(strings.ToUpper(line), " ")
		switch {
		case verb == refuse:
			fmt.Fprint(conn, "550 no\r\n")
		case verb == "EHLO" && !secure && !noTLS:
			fmt.Fprint(conn, "250-mail\r\n250 STARTTLS\r\n")
		case verb == "EHLO":
			fmt.Fprint(conn, "250-mail\r\n250 AUTH PLAIN\r\n")
		case verb == "STARTTLS" && noTLS:
			fmt.Fprint(conn, "502 no\r\n")
		case verb == "STARTTLS":
			fmt.Fprint(conn, "220 go on\r\n")
			conn = tls.Server(conn, config)
			r, secure = bufio.NewReader(conn), true
		case verb == "DATA":
			fmt.Fprint(conn, "354 go on\r\n")
			text := envelope
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				if line == ".\r\n" {
					break
				}
				text += line
			}
			s.messages <- text
			fmt.Fprint(conn, "250 taken\r\n")
		case verb == "QUIT":
			fmt.Fprint(conn, "221 bye\r\n")
			return
		default:
			envelope += line + "\r\n"
			fmt.Fprintf(conn, "%s\r\n", map[bool]string{true: "235 welcome", false: "250 fine"}[verb == "AUTH"])
		}
	}
}

func (s *mailServer) config(t *testing.T) MailConfig {
	return MailConfig{
		Pages: "https://broker.acme.test", Host: "127.0.0.1", Port: s.port, From: "Access Broker <broker@acme.test>",
		To: []string{"dba@acme.test", "Ben <ben@acme.test>"}, Username: "broker", Password: "sesame", TLS: "starttls", Roots: s.roots,
		AllowPrivate: true, Templates: builtInTexts(t),
	}
}

func TestMail(t *testing.T) {
	s := newMailServer(t, "", false)
	m, err := NewMail(s.config(t))
	if err != nil {
		t.Fatal(err)
	}
	n, r := waiting()
	r.Entitlement = "größe\r\nBcc: evil@acme.test"
	r.Justification = "a line\r\n.\r\nMAIL FROM:<evil@acme.test>"
	if _, err := m.Notify(t.Context(), n, r, nil, noon); err != nil {
		t.Fatal(err)
	}
	text := <-s.messages
	envelope, message, found := strings.Cut(text, "From: ")
	auth := base64.StdEncoding.EncodeToString([]byte("\x00broker\x00sesame"))
	for _, line := range []string{"AUTH PLAIN " + auth, "MAIL FROM:<broker@acme.test>", "RCPT TO:<dba@acme.test>", "RCPT TO:<ben@acme.test>"} {
		if !strings.Contains(envelope, line) {
			t.Errorf("the envelope has no %q:\n%s", line, envelope)
		}
	}
	parsed, err := mail.ReadMessage(strings.NewReader("From: " + message))
	if err != nil || !found {
		t.Fatal(err)
	}
	subject, err := new(mime.WordDecoder).DecodeHeader(parsed.Header.Get("Subject"))
	if err != nil || subject != "spiffe://acme.test/agent/triage requests größe Bcc: evil@acme.test" || parsed.Header.Get("Bcc") != "" {
		t.Errorf("got subject %q, %v", subject, err)
	}
	if parsed.Header.Get("Message-Id") != "<"+n.ID.String()+"@acme.test>" {
		t.Errorf("got message id %q", parsed.Header.Get("Message-Id"))
	}
	body, err := io.ReadAll(quotedprintable.NewReader(parsed.Body))
	if err != nil || !strings.Contains(string(body), "https://broker.acme.test/ui/requests/"+r.ID.String()) || !strings.Contains(string(body), "justification (the requester's words, not verified): a line . MAIL FROM") {
		t.Errorf("got body %s, %v", body, err)
	}
}

func TestMailErrors(t *testing.T) {
	n, r := waiting()
	for name, test := range map[string]struct {
		refuse string
		noTLS  bool
		change func(*MailConfig)
		want   string
	}{
		"no TLS":               {noTLS: true, want: "securing the connection"},
		"another authority":    {change: func(c *MailConfig) { c.Roots = x509.NewCertPool() }, want: "securing the connection"},
		"a wrong password":     {refuse: "AUTH", want: "rejected the user or the password"},
		"an unknown recipient": {refuse: "RCPT", want: "sending RCPT TO"},
		"a private address":    {change: func(c *MailConfig) { c.AllowPrivate = false }, want: "allow_private"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newMailServer(t, test.refuse, test.noTLS)
			cfg := s.config(t)
			if test.change != nil {
				test.change(&cfg)
			}
			m, err := NewMail(cfg)
			if err != nil {
				t.Fatal(err)
			}
			_, err = m.Notify(t.Context(), n, r, nil, noon)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "sesame") {
				t.Errorf("got error %v, want %q", err, test.want)
			}
			if len(s.messages) > 0 {
				t.Error("a mail was sent")
			}
		})
	}
}

func TestNewMailRejectsBadConfigs(t *testing.T) {
	good := MailConfig{Host: "mail.acme.test", Port: 587, From: "broker@acme.test", To: []string{"dba@acme.test"}, TLS: "starttls", Templates: builtInTexts(t)}
	if _, err := NewMail(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*MailConfig){
		"no host": func(c *MailConfig) { c.Host = "" }, "no port": func(c *MailConfig) { c.Port = 0 }, "no sender": func(c *MailConfig) { c.From = "" },
		"no recipient": func(c *MailConfig) { c.To = nil }, "two headers": func(c *MailConfig) { c.To = []string{"dba@acme.test\r\nBcc: x@y"} },
		"no TLS": func(c *MailConfig) { c.TLS = "none" }, "an unknown tls": func(c *MailConfig) { c.TLS = "ssl" },
	} {
		bad := good
		change(&bad)
		if _, err := NewMail(bad); err == nil {
			t.Errorf("%s: NewMail accepted it", name)
		}
	}
}
