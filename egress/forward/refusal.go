package forward

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"accessbroker.internal/egress"
)

// Codes of the proxy's own refusals. They are stable.
const (
	CodeToken            = "proxy_token_required" // the client has no token of this proxy
	CodeNotAProxyRequest = "not_a_proxy_request"
	CodeNotTLS           = "not_tls"
	CodeMisdirected      = "misdirected" // CONNECT, TLS and the call name different hosts
)

// statusOf lists the statuses of refusals other than 403.
var statusOf = map[string]int{
	egress.CodeInvalidURL:      http.StatusBadRequest,
	egress.CodeHeader:          http.StatusBadRequest,
	egress.CodeRequestTooLarge: http.StatusRequestEntityTooLarge,
	egress.CodeUnrecorded:      http.StatusServiceUnavailable,
	egress.CodeAnswerTooLarge:  http.StatusBadGateway,
	egress.CodeUnreachable:     http.StatusBadGateway,
	egress.CodeUnreadable:      http.StatusBadGateway,
	egress.CodeTimeout:         http.StatusGatewayTimeout,
	CodeToken:                  http.StatusProxyAuthRequired,
	CodeNotAProxyRequest:       http.StatusBadRequest,
	CodeNotTLS:                 http.StatusBadRequest,
	CodeMisdirected:            http.StatusMisdirectedRequest,
}

func status(r *egress.Refusal) int {
	if code := statusOf[r.Code]; code != 0 {
		return code
	}
	return http.StatusForbidden
}

// errorTypes are the types of RFC 9209, section 2.3, for Proxy-Status.
var errorTypes = map[string]string{
	egress.CodeTimeout: "http_response_timeout", egress.CodeUnreachable: "destination_unavailable",
	egress.CodeAnswerTooLarge: "http_response_body_size", egress.CodeUnreadable: "http_response_content_coding",
	egress.CodeAddress: "destination_ip_prohibited",
}

func proxyStatus(r *egress.Refusal) string {
	kind := errorTypes[r.Code]
	if kind == "" {
		kind = "http_request_denied"
	}
	return fmt.Sprintf("broker-proxy; error=%s; details=%q", kind, r.Code)
}

// refuse answers a call that was not made.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, refusal *egress.Refusal) {
	s.report(event(r, 0, refusal))
	body, contentType := explain(r, refusal, status(refusal))
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	h.Set("Proxy-Status", proxyStatus(refusal))
	w.WriteHeader(status(refusal))
	_, _ = w.Write(body)
}

// refuseTunnel answers CONNECT. Most clients show the reason phrase of this answer, and
// no body.
func (s *Server) refuseTunnel(w http.ResponseWriter, r *http.Request, code int, refusal *egress.Refusal) {
	s.report(event(r, 0, refusal))
	body, contentType := explain(r, refusal, code)
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	fmt.Fprintf(buffered, "HTTP/1.1 %d %s\r\n", code, visible(refusal.What))
	if code == http.StatusProxyAuthRequired {
		fmt.Fprintf(buffered, "Proxy-Authenticate: %s\r\n", w.Header().Get("Proxy-Authenticate"))
	}
	fmt.Fprintf(buffered, "Content-Type: %s\r\nContent-Length: %d\r\nCache-Control: no-store\r\nProxy-Status: %s\r\nConnection: close\r\n\r\n%s",
		contentType, len(body), proxyStatus(refusal), body)
	_ = buffered.Flush()
}

// A problem is the body of a refusal for programs (RFC 9457). Some clients of APIs show
// the message.
type problem struct {
	Type        string `json:"type"`
	Title       string `json:"title"`
	Status      int    `json:"status"`
	Detail      string `json:"detail"`
	Message     string `json:"message"`
	Code        string `json:"code"`
	Next        string `json:"next"`
	Entitlement string `json:"entitlement,omitempty"`
	Request     string `json:"request_id,omitempty"`
}

// explain returns the body of a refusal: JSON for clients that accept it by name, and
// otherwise text, which git and people read.
func explain(r *http.Request, refusal *egress.Refusal, code int) (body []byte, contentType string) {
	what, next := visible(refusal.What), visible(refusal.Next)
	if strings.Contains(r.Header.Get("Accept"), "json") {
		body, err := json.MarshalIndent(problem{
			Type: "urn:access-broker:refusal:" + refusal.Code, Title: what, Status: code, Detail: what + ": " + next + ".", Message: "broker proxy: " + what + ": " + next + ".",
			Code: refusal.Code, Next: next, Entitlement: refusal.Entitlement, Request: refusal.Request,
		}, "", "  ")
		if err == nil {
			return append(body, '\n'), "application/problem+json"
		}
	}
	return fmt.Appendf(nil, "broker proxy: %s.\nNext: %s.\n", what, next), "text/plain; charset=utf-8"
}

// visible replaces what is not printable ASCII, such as line breaks, and shortens.
func visible(text string) string {
	const most = 500
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text[:min(len(text), most)])
}

func (s *Server) report(e Event) {
	if s.cfg.Report != nil {
		s.cfg.Report(e)
	}
}

func event(r *http.Request, code int, refusal *egress.Refusal) Event {
	e := Event{Method: r.Method, Host: r.Host, Status: code, Refusal: refusal}
	if r.Method != http.MethodConnect && r.URL != nil {
		e.Path = r.URL.EscapedPath()
	}
	return e
}
