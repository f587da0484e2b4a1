package egress

import (
	"net/http"
	"net/textproto"
	"slices"
	"strings"
)

// maxHeader bounds the names and values of a call's header in bytes, and of an answer's.
const maxHeader = 64 << 10

// safeHeaders are the headers of a caller that every rule allows.
var safeHeaders = []string{
	"Accept", "Accept-Language", "Cache-Control", "Content-Encoding", "Content-Language", "Content-Md5", "Content-Type",
	"If-Match", "If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since", "Range", "User-Agent",
}

// neverHeaders are headers that no rule can allow: they carry credentials, frame the
// message (RFC 9112), belong to one hop (RFC 9110, section 7.6.1), state an origin, or
// change the method, the host or the path for some servers.
var neverHeaders = []string{
	"Authorization", "Cookie", "Cookie2", "Host", "Content-Length", "Expect", "Accept-Encoding",
	"Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings", "Via", "Max-Forwards", "Forwarded",
	"X-Http-Method", "X-Http-Method-Override", "X-Method-Override", "X-Original-Method",
	"X-Original-Url", "X-Original-Uri", "X-Rewrite-Url", "X-Host", "X-Real-Ip", "X-Original-Host", "X-Http-Host-Override", "X-Http-Destinationurl",
	"X-Amz-Date", "X-Amz-Content-Sha256", "X-Amz-Security-Token",
}

// neverPrefixes start further names that no rule can allow.
var neverPrefixes = []string{"Proxy-", "Sec-", "X-Forwarded-", ":"}

// isNever reports whether no rule can allow a header. Servers that map headers to
// variables read "_" like "-".
func isNever(name string) bool {
	name = textproto.CanonicalMIMEHeaderKey(strings.ReplaceAll(name, "_", "-"))
	return slices.Contains(neverHeaders, name) || slices.ContainsFunc(neverPrefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

// isToken reports whether a text is a token (RFC 9110, section 5.6.2).
func isToken(s string) bool {
	for i := range len(s) {
		if b := s[i]; !isAlphanumeric(b) && strings.IndexByte("!#$%&'*+-.^_`|~", b) < 0 {
			return false
		}
	}
	return s != ""
}

// isFieldValue reports whether a header can have a value (RFC 9110, section 5.5). Control
// characters would start another header.
func isFieldValue(s string) bool {
	for i := range len(s) {
		if b := s[i]; b < ' ' && b != '\t' || b == 0x7f {
			return false
		}
	}
	return true
}

// checkHeader refuses a header that can't be sent as it is.
func checkHeader(h http.Header) *Refusal {
	size := 0
	for name, values := range h {
		if !isToken(name) {
			return refuse(CodeHeader, "write the name with letters, digits and dashes", "The name of a header has a character that it can't have")
		}
		for _, v := range values {
			if !isFieldValue(v) {
				return refuse(CodeHeader, "write the value on one line without control characters", "The header %s has a line break or another control character", name)
			}
			size += len(name) + len(v)
		}
	}
	if size > maxHeader {
		return refuse(CodeHeader, "send fewer or shorter headers", "The headers are longer than %d bytes", maxHeader)
	}
	return nil
}

// pick returns the headers of a caller that a call may have. Headers that the caller's
// Connection header names belong to the caller's connection.
func pick(h http.Header, allowed *headerNames) http.Header {
	out := http.Header{}
	var hop []string
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			hop = append(hop, textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)))
		}
	}
	for name, values := range h {
		canonical := textproto.CanonicalMIMEHeaderKey(name)
		if isNever(canonical) || slices.Contains(hop, canonical) || !allowed.contain(canonical) {
			continue
		}
		out[canonical] = append(out[canonical], values...)
	}
	return out
}

// headerNames are names of headers in their canonical form, and prefixes of names.
type headerNames struct {
	names    []string
	prefixes []string
}

func parseHeaders(list []string) (*headerNames, string) {
	h := &headerNames{names: slices.Clone(safeHeaders)}
	for _, text := range list {
		name, isPrefix := strings.CutSuffix(text, "*")
		switch {
		case !isToken(name) || len(name) > 128 || strings.Contains(name, "*"):
			return nil, `write a header name, such as x-request-id, or the start of names with a dash, such as "x-amz-meta-*"`
		case isPrefix && !strings.HasSuffix(name, "-"):
			return nil, `write a "*" only after a dash, such as "x-amz-meta-*"`
		case !isPrefix && isNever(name):
			return nil, text + " can't be allowed: the credential, the connection and the target of a call are not the caller's"
		case isPrefix:
			h.prefixes = append(h.prefixes, textproto.CanonicalMIMEHeaderKey(name))
		default:
			h.names = append(h.names, textproto.CanonicalMIMEHeaderKey(name))
		}
	}
	return h, ""
}

func (h *headerNames) contain(name string) bool {
	return slices.Contains(h.names, name) || slices.ContainsFunc(h.prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}
