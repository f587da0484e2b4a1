package scrub

import (
	"bufio"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
)

// AcceptEncoding is the header with which a call states the codings that Response reads.
const AcceptEncoding = "gzip, deflate"

// maxCodings bounds the codings on top of each other.
const maxCodings = 3

// Errors of Response. Their texts contain nothing of the answer.
var (
	ErrCoding = errors.New("the answer is compressed in a way that cannot be searched for the credential; ask for gzip, deflate or identity")
	ErrRanges = errors.New("the answer consists of several ranges, which cannot be searched for the credential; ask for one range")
)

// Response removes the secrets from the header of an answer, and from the body and the
// trailer as they are read. It decodes the body, and removes the headers that described
// the coded one. It refuses a body that it cannot read, with [ErrCoding] or [ErrRanges].
//
// An answer that switched protocols keeps its body: see [Scrubber.Frames].
func (s *Scrubber) Response(resp *http.Response) error {
	codings, err := codings(resp.Header)
	if err != nil {
		return err
	}
	if media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); resp.StatusCode == http.StatusPartialContent && media == "multipart/byteranges" {
		return ErrRanges
	}
	partial := resp.StatusCode == http.StatusPartialContent
	if partial && len(codings) > 0 {
		return ErrCoding // a part of compressed data
	}
	status := resp.Status
	resp.Status = s.String(status)
	found := s.header(resp.Header)
	found = s.header(resp.Trailer) || resp.Status != status || found
	switch {
	case resp.StatusCode == http.StatusSwitchingProtocols:
		return nil
	case resp.Body == nil || resp.Body == http.NoBody:
		if found {
			resp.Body = &answer{ReadCloser: http.NoBody, s: s, resp: resp, found: true}
		}
		return nil
	}
	if len(codings) > 0 && resp.ContentLength != 0 {
		resp.Body = &decoder{src: resp.Body, codings: codings}
		decoded(resp)
	}
	body := s.Reader(resp.Body)
	if r, ok := body.(*reader); ok {
		r.scan.partial = partial
	}
	resp.Body = &answer{ReadCloser: body, s: s, resp: resp, found: found}
	return nil
}

// codings returns the content codings of an answer, in the order in which they were
// applied (RFC 9110, section 8.4).
func codings(h http.Header) (list []string, err error) {
	for _, value := range h.Values("Content-Encoding") {
		for coding := range strings.SplitSeq(value, ",") {
			switch coding = strings.ToLower(strings.TrimSpace(coding)); coding {
			case "", "identity":
			case "gzip", "x-gzip", "deflate":
				list = append(list, coding)
			default:
				return nil, ErrCoding
			}
		}
	}
	if len(list) > maxCodings {
		return nil, ErrCoding
	}
	return list, nil
}

// decoded removes the headers that are true for the coded body only. A strong validator
// becomes a weak one (RFC 9110, section 8.8.1).
func decoded(resp *http.Response) {
	resp.ContentLength, resp.Uncompressed = -1, true
	for _, name := range []string{"Content-Encoding", "Content-Length", "Content-Md5", "Digest", "Content-Digest", "Repr-Digest", "Accept-Ranges"} {
		resp.Header.Del(name)
	}
	if tag := resp.Header.Get("ETag"); strings.HasPrefix(tag, `"`) {
		resp.Header.Set("ETag", "W/"+tag)
	}
}

// An answer is a body whose trailer is cleaned when it arrives.
type answer struct {
	io.ReadCloser
	s     *Scrubber
	resp  *http.Response
	found bool // a secret, in the header
}

// Masked reports whether the answer of a call of Response had a secret, as far as its
// body has been read. body is the body that Response made.
func Masked(body io.Reader) bool {
	a, ok := body.(*answer)
	if !ok {
		return false
	}
	r, ok := a.ReadCloser.(*reader)
	return a.found || ok && r.scan.masked
}

func (a *answer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if err != nil {
		a.s.Header(a.resp.Trailer)
	}
	return n, err
}

// WriteTo keeps the speed of the reader under an answer.
func (a *answer) WriteTo(w io.Writer) (int64, error) {
	defer func() { a.s.Header(a.resp.Trailer) }()
	return io.Copy(w, a.ReadCloser)
}

// A decoder decodes a body. It reads the first bytes when it is read first, because a
// stream may begin much later than its header.
type decoder struct {
	src     io.ReadCloser
	codings []string
	body    io.Reader
	err     error
}

func (d *decoder) Read(p []byte) (int, error) {
	if d.body == nil && d.err == nil {
		d.body, d.err = d.open()
	}
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.body.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("decoding the answer: %w", err)
	}
	d.err = err
	return n, err
}

func (d *decoder) Close() error { return d.src.Close() }

// open removes the codings in the opposite order.
func (d *decoder) open() (body io.Reader, err error) {
	body = d.src
	for i := len(d.codings) - 1; i >= 0; i-- {
		coded := bufio.NewReader(body)
		if _, err := coded.Peek(1); err != nil {
			return nil, err // also io.EOF: a body without content
		}
		if body, err = open(d.codings[i], coded); err != nil {
			return nil, fmt.Errorf("decoding the answer: %w", err)
		}
	}
	return body, nil
}

func open(coding string, coded *bufio.Reader) (io.Reader, error) {
	if coding != "deflate" {
		return gzip.NewReader(coded)
	}
	// RFC 9110, section 8.4.1.2: "deflate" is the zlib format, but some servers leave out
	// its header (RFC 1950, section 2.2).
	head, _ := coded.Peek(2)
	if len(head) == 2 && head[0]&0x0f == 8 && (int(head[0])<<8|int(head[1]))%31 == 0 {
		return zlib.NewReader(coded)
	}
	return flate.NewReader(coded), nil
}
