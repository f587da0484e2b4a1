package server

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// A document is a public text that rarely changes: it has an entity tag and a compressed
// form. Answers with secrets are never compressed, because the length of a compressed
// answer reveals parts of its content.
type document struct {
	body, zipped []byte // zipped is nil if compressing saves nothing
	tag          string // the opaque part of the entity tags
}

// documents caches the form of each public text. It is safe for concurrent use.
type documents struct {
	mu     sync.Mutex
	byName map[string]*document // guarded by mu; a document is never modified
}

// maxDocuments bounds the documents that are kept. There are some tens, and the status lists.
const maxDocuments = 1024

// of returns the document of a text. The names are those of routes, embedded files and
// status lists.
func (d *documents) of(name string, body []byte) (*document, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if known := d.byName[name]; known != nil && bytes.Equal(known.body, body) {
		return known, nil
	}
	fresh, err := newDocument(body)
	if err != nil {
		return nil, err
	}
	if d.byName == nil || len(d.byName) >= maxDocuments {
		d.byName = map[string]*document{}
	}
	d.byName[name] = fresh
	return fresh, nil
}

func newDocument(body []byte) (*document, error) {
	sum := sha256.Sum256(body)
	d := &document{body: body, tag: base64.RawURLEncoding.EncodeToString(sum[:12])}
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, fmt.Errorf("compressing a document: %w", err)
	}
	if _, err := z.Write(body); err != nil {
		return nil, fmt.Errorf("compressing a document: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("compressing a document: %w", err)
	}
	if b.Len() < len(body) {
		d.zipped = b.Bytes()
	}
	return d, nil
}

// document answers with a public text. The two forms have different entity tags, because
// their bytes differ (RFC 9110, section 8.8.3.3). header is not nil.
func (c *call) document(name string, body []byte, mediaType string, header http.Header) (reply, error) {
	d, err := c.s.documents.of(name, body)
	if err != nil {
		return reply{}, err
	}
	plain, zipped := `"`+d.tag+`"`, `"`+d.tag+`-gzip"`
	header.Set("Vary", "Accept-Encoding")
	for _, tag := range []string{plain, zipped} {
		if matchesTag(c.r.Header.Values("If-None-Match"), tag) {
			header.Set("ETag", tag)
			return reply{status: http.StatusNotModified, header: header}, nil
		}
	}
	if d.zipped == nil || !acceptsGzip(c.r.Header.Values("Accept-Encoding")) {
		header.Set("ETag", plain)
		return reply{status: http.StatusOK, body: d.body, mediaType: mediaType, header: header}, nil
	}
	header.Set("ETag", zipped)
	header.Set("Content-Encoding", "gzip")
	return reply{status: http.StatusOK, body: d.zipped, mediaType: mediaType, header: header}, nil
}

// matchesTag reports whether If-None-Match lists the tag, by the weak comparison (RFC
// 9110, section 13.1.2).
func matchesTag(ifNoneMatch []string, tag string) bool {
	for _, line := range ifNoneMatch {
		for item := range strings.SplitSeq(line, ",") {
			item = strings.Trim(item, " \t")
			if item == "*" || strings.TrimPrefix(item, "W/") == tag {
				return true
			}
		}
	}
	return false
}

// acceptsGzip reports whether Accept-Encoding permits gzip (RFC 9110, section 12.5.3).
// "*" counts only if gzip is not listed.
func acceptsGzip(acceptEncoding []string) bool {
	any := false
	for _, line := range acceptEncoding {
		for item := range strings.SplitSeq(line, ",") {
			coding, parameters, _ := strings.Cut(item, ";")
			switch strings.ToLower(strings.Trim(coding, " \t")) {
			case "gzip", "x-gzip":
				return !isZeroWeight(parameters)
			case "*":
				any = !isZeroWeight(parameters)
			}
		}
	}
	return any
}

// isZeroWeight reports whether the parameters are a weight of zero, or none that can be
// read.
func isZeroWeight(parameters string) bool {
	if strings.Trim(parameters, " \t") == "" {
		return false
	}
	name, value, _ := strings.Cut(strings.Trim(parameters, " \t"), "=")
	q, err := strconv.ParseFloat(value, 64)
	return !strings.EqualFold(name, "q") || err != nil || !(q > 0)
}
