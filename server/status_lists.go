package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// StatusLists are the status lists of the broker's tokens.
type StatusLists interface {
	// Token returns a status list token, or an error that wraps broker.ErrNotFound.
	Token(ctx context.Context, list string, now time.Time) (string, error)

	// URIs returns the URIs of the lists whose tokens may be valid.
	URIs(ctx context.Context, now time.Time) ([]string, error)
}

// statusListHeader makes caches revalidate: they must not add to the time after which
// resource servers learn of a revocation, which is the ttl in the list.
func statusListHeader() http.Header { return http.Header{"Cache-Control": {"public, no-cache"}} }

// statusList returns a status list token (draft-ietf-oauth-status-list-20, section 8.2).
func (s *Server) statusList(c *call) (reply, error) {
	if c.r.URL.Query().Has("time") { // section 8.4
		return reply{}, refuse(errNotImplemented, "lists of the past are not available: omit time")
	}
	text, err := "", error(broker.ErrNotFound)
	if s.cfg.StatusLists != nil {
		text, err = s.cfg.StatusLists.Token(c.r.Context(), c.r.PathValue("list"), c.now)
	}
	if errors.Is(err, broker.ErrNotFound) {
		return reply{}, errNoStatusList
	}
	if err != nil {
		return reply{}, err
	}
	return c.document("status list "+c.r.PathValue("list"), []byte(text), "application/statuslist+jwt", statusListHeader())
}

// statusLists returns the URIs of all lists (section 9.3).
func (s *Server) statusLists(c *call) (reply, error) {
	uris := []string{}
	if s.cfg.StatusLists != nil {
		list, err := s.cfg.StatusLists.URIs(c.r.Context(), c.now)
		if err != nil {
			return reply{}, err
		}
		uris = append(uris, list...)
	}
	text, err := reply{body: api.StatusLists{Lists: uris}}.encode(new(bytes.Buffer))
	if err != nil {
		return reply{}, fmt.Errorf("encoding the status lists: %w", err)
	}
	return c.document("status lists", text, "application/json", statusListHeader())
}
