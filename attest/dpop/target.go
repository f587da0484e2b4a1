package dpop

import (
	"net/http"
	"net/url"
	"strings"
)

// addresses reports whether an htu is the URL of a request, without query and fragment (RFC
// 9449, section 4.3, step 9). The client may have used the external URL, with a proxy in
// between that changed the host or removed a path, or any host of the broker's directly. A
// broker below a path of the external host shares that host with others: what is outside the
// path is theirs, also if a proxy removed the path.
func (v *Verifier) addresses(htu string, r *http.Request) bool {
	at := r.URL.EscapedPath()
	if external := v.external.String(); strings.HasPrefix(htu, external) && htu[len(external):] == at {
		return true // as written by most clients
	}
	got, ok := normalize(htu)
	if !ok {
		return false
	}
	sent, _, _ := strings.Cut(r.RequestURI, "?") // before a prefix was removed from the path
	candidates := []string{v.external.String() + at}
	if !v.sharesHost(r.Host) {
		candidates = append(candidates, "https://"+r.Host+sent)
		if r.TLS == nil { // on loopback, or behind a proxy that ends TLS
			candidates = append(candidates, "http://"+r.Host+sent)
		}
	}
	for _, candidate := range candidates {
		if want, ok := normalize(candidate); ok && got == want {
			return true
		}
	}
	return false
}

// sharesHost reports whether a host is that of an external URL with a path.
func (v *Verifier) sharesHost(host string) bool {
	got, ok := normalize("https://" + host)
	own, _ := normalize("https://" + v.external.Host)
	return v.external.Path != "" && ok && got == own
}

// normalize returns the one spelling of an absolute HTTP URL without query and fragment (RFC
// 3986, sections 6.2.2 and 6.2.3).
func normalize(text string) (string, bool) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Opaque != "" {
		return "", false
	}
	u.Scheme = strings.ToLower(u.Scheme)
	port := map[string]string{"https": "443", "http": "80"}[u.Scheme]
	if port == "" {
		return "", false
	}
	host := strings.ToLower(u.Host)
	host = strings.TrimSuffix(strings.TrimSuffix(host, ":"), ":"+port)
	u = u.ResolveReference(&url.URL{Path: u.Path, RawPath: u.RawPath}) // removes dot segments
	path := normalPath(u.EscapedPath())
	if path == "" {
		path = "/"
	}
	return u.Scheme + "://" + host + path, true
}

// normalPath returns a path whose escapes are in upper case, and only of characters that
// need one.
func normalPath(path string) string {
	if !strings.Contains(path, "%") {
		return path
	}
	const hex = "0123456789ABCDEF"
	b := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		if path[i] != '%' || i+2 >= len(path) {
			b = append(b, path[i])
			continue
		}
		c := unhex(path[i+1])<<4 | unhex(path[i+2])
		if isUnreserved(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&15])
		}
		i += 2
	}
	return string(b)
}

func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return c - 'A' + 10 // url.Parse has checked the digits
}

// isUnreserved reports whether a character never needs an escape (RFC 3986, section 2.3).
func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}
