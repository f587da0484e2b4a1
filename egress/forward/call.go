package forward

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"accessbroker.internal/egress"
)

// call makes a call and passes the answer on as it arrives.
func (s *Server) call(w http.ResponseWriter, r *http.Request, scheme, authority, uri string) {
	if !strings.HasPrefix(uri, "/") {
		s.refuse(w, r, &egress.Refusal{Code: egress.CodeInvalidURL, What: "The call names no path", Next: "call a URL with a path"})
		return
	}
	target, err := url.Parse(scheme + "://" + authority + uri)
	if err != nil {
		s.refuse(w, r, &egress.Refusal{Code: egress.CodeInvalidURL, What: "The URL of the call is not valid", Next: "percent-encode the URL"})
		return
	}
	out := &http.Request{
		Method: r.Method, URL: target, Host: authority, Header: r.Header.Clone(),
		Body: r.Body, ContentLength: r.ContentLength, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	// The header of the proxy's own token is for the proxy. The rules drop it as well.
	out.Header.Del("Proxy-Authorization")
	if r.ContentLength == 0 {
		out.Body = http.NoBody
	}
	out = out.WithContext(r.Context())
	// An answer may start before the request has ended, as with a refused upload.
	_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 always does
	send := s.cfg.Caller.RoundTrip
	if isUpgrade(r) {
		send = s.cfg.Caller.Upgrade
	}
	resp, err := send(out)
	if err != nil {
		s.failed(w, r, err)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	s.report(event(r, resp.StatusCode, nil))
	if resp.StatusCode == http.StatusSwitchingProtocols {
		s.switchProtocols(w, r, resp)
		return
	}
	answer(w, resp)
}

// failed answers a call that was not made, or whose answer is withheld.
func (s *Server) failed(w http.ResponseWriter, r *http.Request, err error) {
	var refusal *egress.Refusal
	switch {
	case r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // the client has gone
	case errors.As(err, &refusal):
		s.refuse(w, r, refusal)
	default: // no text: it may have parts of the answer
		s.refuse(w, r, &egress.Refusal{Code: egress.CodeUnreachable, What: "The call failed", Next: "try again later"})
	}
}

// hopHeaders belong to one connection (RFC 9110, section 7.6.1).
var hopHeaders = []string{
	"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authentication-Info",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade",
	"Alt-Svc", // would lead clients around the tunnel, for example to HTTP/3
}

// buffers are for the bodies of answers.
var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// answer sends the answer of a call. A body that ends before its time ends the client's
// connection, so that the client notices.
func answer(w http.ResponseWriter, resp *http.Response) {
	header := w.Header()
	maps.Copy(header, endToEnd(resp.Header))
	for name := range resp.Trailer {
		header.Add("Trailer", name)
	}
	w.WriteHeader(resp.StatusCode)
	control := http.NewResponseController(w)
	if resp.ContentLength < 0 { // a stream: its client may wait for the header
		_ = control.Flush()
	}
	if err := copyLive(w, control, resp.Body); err != nil {
		panic(http.ErrAbortHandler)
	}
	for name, values := range resp.Trailer {
		// HTTP/2 of net/http would never end an answer whose announced trailer is empty.
		if resp.ContentLength < 0 && len(values) > 0 {
			header[http.TrailerPrefix+name] = values
		}
	}
}

// copyLive passes on each part of a body when it arrives.
func copyLive(w io.Writer, control *http.ResponseController, body io.Reader) error {
	buffer := buffers.Get().(*[64 << 10]byte)
	defer func() {
		clear(buffer[:])
		buffers.Put(buffer)
	}()
	for {
		n, err := body.Read(buffer[:])
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				return err
			}
			if n < len(buffer) { // a full buffer has a successor
				if err := control.Flush(); err != nil {
					return err
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// endToEnd returns the header without what belongs to the connection to the target.
func endToEnd(h http.Header) http.Header {
	out := h.Clone()
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			out.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range hopHeaders {
		out.Del(name)
	}
	return out
}

// switchProtocols connects a client to its target after both have agreed on another
// protocol (RFC 9110, section 7.8).
func (s *Server) switchProtocols(w http.ResponseWriter, r *http.Request, resp *http.Response) {
	target, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || !isUpgrade(r) {
		s.refuse(w, r, &egress.Refusal{Code: egress.CodeUnreadable, What: "The target changed the protocol of the connection", Next: "report this to the owner of the target"})
		return
	}
	header := endToEnd(resp.Header)
	header.Set("Connection", "Upgrade")
	header.Set("Upgrade", "websocket")
	maps.Copy(w.Header(), header)
	w.WriteHeader(http.StatusSwitchingProtocols)
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = client.Close() }()
	if err := buffered.Flush(); err != nil {
		return
	}
	join(&joined{client, buffered.Reader}, target)
}

// joined reads what was buffered first.
type joined struct {
	io.WriteCloser
	io.Reader
}

// join copies both ways until one side ends.
func join(a, b io.ReadWriteCloser) {
	var ways sync.WaitGroup
	ended := func() { _, _ = a.Close(), b.Close() }
	ways.Go(func() { defer ended(); _, _ = io.Copy(a, b) })
	ways.Go(func() { defer ended(); _, _ = io.Copy(b, a) })
	ways.Wait()
}

// isUpgrade reports whether a call asks for a WebSocket.
func isUpgrade(r *http.Request) bool {
	return r.ProtoMajor == 1 && strings.EqualFold(r.Header.Get("Upgrade"), "websocket") &&
		slices.ContainsFunc(strings.Split(strings.Join(r.Header["Connection"], ","), ","), func(name string) bool {
			return strings.EqualFold(strings.TrimSpace(name), "Upgrade")
		})
}
