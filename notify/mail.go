package notify

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"net/netip"
	"net/smtp"
	"net/textproto"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/outbound"
)

// A MailConfig configures a mail server and the recipients.
type MailConfig struct {
	Pages        string
	Host         string
	Port         int
	From         string // an address
	To           []string
	Username     string // empty: without authentication
	Password     string
	TLS          string         // starttls, implicit, or none on loopback
	Roots        *x509.CertPool // nil: the system's
	AllowPrivate bool           // allow addresses that are not public
	Templates    *Templates
}

type mailer struct {
	cfg  MailConfig
	from *mail.Address
	to   []*mail.Address
}

// NewMail returns the notifier for mail.
func NewMail(c MailConfig) (Notifier, error) {
	m := &mailer{cfg: c}
	var err error
	if m.from, err = mail.ParseAddress(c.From); err != nil {
		return nil, errors.New("from must be a mail address")
	}
	for _, to := range c.To {
		a, err := mail.ParseAddress(to)
		if err != nil {
			return nil, errors.New("to must be a list of mail addresses")
		}
		m.to = append(m.to, a)
	}
	loopback, _ := netip.ParseAddr(c.Host)
	switch {
	case len(m.to) == 0 || len(m.to) > 50:
		return nil, errors.New("to needs 1 to 50 addresses")
	case c.Host == "" || c.Port < 1 || c.Port > 65535:
		return nil, errors.New("set the host and port of the mail server")
	case c.TLS != "starttls" && c.TLS != "implicit" && (c.TLS != "none" || !loopback.IsLoopback()):
		return nil, errors.New("tls must be starttls or implicit; none works only for a mail server on this machine")
	}
	return m, nil
}

// Notify sends a mail. The Message-ID contains the id of the notice, so that mail
// programs recognize a repeated one.
func (m *mailer) Notify(ctx context.Context, n *broker.Notice, r *broker.Request, _ []string, now time.Time) (string, error) {
	to := m.to
	if n.Channel == broker.PeopleChannel {
		a, err := mail.ParseAddress(n.Address)
		if err != nil {
			return "", fmt.Errorf("the address from the provider is not valid: %w", ErrChannelGone)
		}
		to = []*mail.Address{{Address: a.Address}}
	}
	var subject, body string
	var err error
	if n.Event == broker.NoticePasskey {
		subject, body, err = enrolled.text(m.cfg.Pages, n)
	} else {
		subject, body, _, err = m.cfg.Templates.message(m.cfg.Pages, n, r, now)
	}
	if err != nil {
		return "", err
	}
	text, err := m.compose(n.ID.String(), to, subject, body, now)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, outbound.Timeout)
	defer cancel()
	client, err := m.connect(ctx)
	if err != nil {
		return "", err
	}
	defer func() { _ = client.Close() }()
	err = m.send(client, to, text)
	if refused := (*textproto.Error)(nil); n.Channel == broker.PeopleChannel && errors.As(err, &refused) && refused.Code == 550 {
		return "", fmt.Errorf("the mail server does not know the address: %w", ErrChannelGone) // one bad address must not delay other people's mail
	}
	return "", err
}

// compose returns the message (RFC 5322). No header can contain a line break: the
// addresses were parsed, and the subject is encoded.
func (m *mailer) compose(id string, recipients []*mail.Address, subject, body string, now time.Time) ([]byte, error) {
	_, domain, _ := strings.Cut(m.from.Address, "@")
	var to []string
	for _, a := range recipients {
		to = append(to, a.String())
	}
	var b bytes.Buffer
	for _, h := range [][2]string{
		{"From", m.from.String()}, {"To", strings.Join(to, ", ")}, {"Subject", mime.QEncoding.Encode("utf-8", subject)},
		{"Date", now.UTC().Format(time.RFC1123Z)}, {"Message-ID", "<" + id + "@" + domain + ">"}, {"Auto-Submitted", "auto-generated"},
		{"MIME-Version", "1.0"}, {"Content-Type", "text/plain; charset=utf-8"}, {"Content-Transfer-Encoding", "quoted-printable"},
	} {
		fmt.Fprintf(&b, "%s: %s\r\n", h[0], h[1])
	}
	b.WriteString("\r\n")
	w := quotedprintable.NewWriter(&b)
	if _, err := w.Write([]byte(body + "\n")); err != nil {
		return nil, fmt.Errorf("encoding the mail: %w", err)
	}
	return b.Bytes(), w.Close()
}

func (m *mailer) connect(ctx context.Context) (*smtp.Client, error) {
	dialer := &net.Dialer{Control: outbound.Control(m.cfg.AllowPrivate)}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(m.cfg.Host, strconv.Itoa(m.cfg.Port)))
	if err != nil {
		return nil, fmt.Errorf("connecting to the mail server: %w", err)
	}
	if until, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(until)
	}
	config := &tls.Config{ServerName: m.cfg.Host, RootCAs: m.cfg.Roots, MinVersion: tls.VersionTLS12}
	if m.cfg.TLS == "implicit" {
		conn = tls.Client(conn, config)
	}
	client, err := smtp.NewClient(conn, m.cfg.Host)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting the SMTP session: %w", err), conn.Close())
	}
	if m.cfg.TLS == "starttls" {
		if err := client.StartTLS(config); err != nil { // never send without TLS
			return nil, errors.Join(fmt.Errorf("securing the connection to the mail server: %w", err), client.Close())
		}
	}
	return client, nil
}

func (m *mailer) send(client *smtp.Client, recipients []*mail.Address, text []byte) error {
	if m.cfg.Username != "" {
		if err := client.Auth(smtp.PlainAuth("", m.cfg.Username, m.cfg.Password, m.cfg.Host)); err != nil {
			return errors.New("the mail server rejected the user or the password")
		}
	}
	if err := client.Mail(m.from.Address); err != nil {
		return fmt.Errorf("sending MAIL FROM: %w", err)
	}
	for _, to := range recipients {
		if err := client.Rcpt(to.Address); err != nil {
			return fmt.Errorf("sending RCPT TO: %w", err)
		}
	}
	w, err := client.Data()
	if err != nil {
		return fmt.Errorf("sending the mail: %w", err)
	}
	if _, err := w.Write(text); err != nil {
		return fmt.Errorf("sending the mail: %w", err)
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("sending the mail: %w", err)
	}
	_ = client.Quit() // the server has accepted the mail
	return nil
}
