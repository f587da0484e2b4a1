package dpop

import (
	"encoding/base64"
	"strings"
	"sync"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/audit"
)

// A client sends the same header in each of its proofs: the algorithm and the key. Reading it
// takes longer than the rest of a proof except its signature.

// Bounds of what is remembered. Two generations take at most about 5 MB.
const (
	maxHeaders = 1024
	maxHeader  = 1 << 10 // bytes; that of a key on P-256 has about 250
)

// A header is the header of a proof.
type header struct {
	algorithm  string
	key        jwks.Key
	thumbprint audit.Digest // of the key
}

// headers remembers headers with a valid signature by their text. The zero value is empty. It
// is safe for concurrent use.
type headers struct {
	mu           sync.Mutex
	now, earlier map[string]*header
}

// read returns the header with a text in base64url. A header follows from its text alone.
func (s *headers) read(text string) (h *header, err error) {
	if h := s.find(text); h != nil {
		return h, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || text == "" {
		return nil, errPart()
	}
	h = &header{}
	if h.algorithm, h.key, err = readHeader(raw); err != nil {
		return nil, err
	}
	h.thumbprint = h.key.Thumbprint()
	return h, nil
}

func (s *headers) find(text string) *header {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.now[text]; h != nil {
		return h
	}
	h := s.earlier[text]
	if h != nil {
		s.put(strings.Clone(text), h)
	}
	return h
}

// keep remembers a header that came with a valid signature.
func (s *headers) keep(text string, h *header) {
	if len(text) > maxHeader {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now[text] == nil {
		s.put(strings.Clone(text), h) // the text is part of the proof
	}
}

// put adds a header to the current generation. A full one becomes the earlier one. The caller
// holds mu.
func (s *headers) put(text string, h *header) {
	if s.now == nil || len(s.now) >= maxHeaders {
		s.earlier, s.now = s.now, map[string]*header{}
	}
	s.now[text] = h
}
