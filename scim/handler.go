package scim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/directory"
)

// Path is the path of the service provider, below the broker's URL.
const Path = "/scim/v2/"

// MaxBody bounds the body of a request: a PUT of a group lists all of its members.
const MaxBody = 2 << 20

// Config configures a Handler. All fields but Log are required.
type Config struct {
	Directory *directory.Directory
	URL       string // of the broker, without a slash at the end

	// Caller authenticates the client and returns the name of its source.
	Caller func(*http.Request) (broker.Caller, string, error)

	Subjects map[string]Subject // of the sources, by name
	Log      *slog.Logger       // nil: discarded
}

// A Handler serves the protocol. It is safe for concurrent use.
type Handler struct {
	cfg   Config
	scans map[string]chan struct{} // by source; a list that no index answers reads all users
}

// NewHandler returns a Handler.
func NewHandler(cfg Config) (*Handler, error) {
	if cfg.Directory == nil || cfg.Caller == nil || cfg.URL == "" {
		return nil, errors.New("a SCIM handler needs a directory, a way to authenticate and its URL")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	h := &Handler{cfg: cfg, scans: map[string]chan struct{}{}}
	for _, s := range cfg.Directory.Sources() {
		if cfg.Subjects[s.Name].path.schema == nil {
			return nil, fmt.Errorf("the source %q has no attribute that names people", s.Name)
		}
		h.scans[s.Name] = make(chan struct{}, 1)
	}
	return h, nil
}

// A request is one call of a client.
type request struct {
	*http.Request
	h      *Handler
	caller broker.Caller
	source string
	query  query
}

// An answer is a response before encoding.
type answer struct {
	status   int
	body     any // nil: none
	tag      string
	location string
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a, err := h.serve(r)
	if err != nil {
		a = h.refusal(w, r, err)
	}
	header := w.Header()
	if a.tag != "" {
		header.Set("ETag", a.tag)
	}
	if a.location != "" {
		header.Set("Location", a.location)
	}
	if a.body == nil {
		w.WriteHeader(a.status)
		return
	}
	encoded, err := json.Marshal(a.body)
	if err != nil {
		h.cfg.Log.ErrorContext(r.Context(), "encoding a SCIM answer", "err", err)
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	header.Set("Content-Type", "application/scim+json")
	w.WriteHeader(a.status)
	_, _ = w.Write(encoded) // the client may have gone away
}

func (h *Handler) serve(r *http.Request) (a answer, err error) {
	caller, source, err := h.cfg.Caller(r)
	if err != nil {
		return a, err
	}
	if err := h.cfg.Directory.Heard(r.Context(), source, caller.At); err != nil {
		return a, err
	}
	// The client may have reached another process a moment ago.
	if err := h.cfg.Directory.Refresh(r.Context(), caller.At); err != nil {
		return a, err
	}
	req := &request{Request: r, h: h, caller: caller, source: source}
	if req.query, err = parseQuery(r.URL.RawQuery); err != nil {
		return a, err
	}
	endpoint, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, Path), "/")
	switch endpoint {
	case "ServiceProviderConfig", "Schemas", "ResourceTypes":
		return req.discover(endpoint, rest)
	case "Users":
		return req.resources(rest, users{})
	case "Groups":
		return req.resources(rest, groups{})
	case "Bulk", "Me":
		return a, refuse(http.StatusNotImplemented, "%s is not supported: see ServiceProviderConfig", endpoint)
	}
	return a, refuse(http.StatusNotFound, "there is no endpoint of that name: see ResourceTypes")
}

// A kindOfResource serves the resources of one type.
type kindOfResource interface {
	create(*request, map[string]any) (answer, error)
	get(r *request, id string) (answer, error)
	replace(r *request, id string, object map[string]any) (answer, error)
	patch(r *request, id string, ops []operation) (answer, error)
	delete(r *request, id string) (answer, error)
	list(*request, query) (answer, error)
}

// resources routes a call by its method and the rest of its path.
func (r *request) resources(rest string, kind kindOfResource) (answer, error) {
	switch {
	case rest == "" && r.isRead():
		return kind.list(r, r.query)
	case rest == "" && r.Method == http.MethodPost:
		object, err := r.object()
		if err != nil {
			return answer{}, err
		}
		return kind.create(r, object)
	case rest == ".search" && r.Method == http.MethodPost:
		object, err := r.object()
		if err != nil {
			return answer{}, err
		}
		q, err := searchQuery(object)
		if err != nil {
			return answer{}, err
		}
		return kind.list(r, q)
	case rest == "" || rest == ".search":
		return answer{}, refuse(http.StatusMethodNotAllowed, "the endpoint does not have this method")
	case strings.Contains(rest, "/"):
		return answer{}, errNoResource
	}
	switch {
	case r.isRead():
		return kind.get(r, rest)
	case r.Method == http.MethodDelete:
		return kind.delete(r, rest)
	case r.Method == http.MethodPut:
		object, err := r.object()
		if err != nil {
			return answer{}, err
		}
		return kind.replace(r, rest, object)
	case r.Method == http.MethodPatch:
		body, err := r.body()
		if err != nil {
			return answer{}, err
		}
		ops, err := parsePatch(body)
		if err != nil {
			return answer{}, err
		}
		return kind.patch(r, rest, ops)
	}
	return answer{}, refuse(http.StatusMethodNotAllowed, "a resource has GET, PUT, PATCH and DELETE")
}

func (r *request) isRead() bool { return r.Method == http.MethodGet || r.Method == http.MethodHead }

var errNoResource = refuse(http.StatusNotFound, "there is no such resource")

// body reads the body, which must be JSON.
func (r *request) body() ([]byte, error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/scim+json" && kind != "application/json" {
		return nil, refuse(http.StatusUnsupportedMediaType, "send application/scim+json")
	}
	body, err := io.ReadAll(r.Body)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, refuse(http.StatusRequestEntityTooLarge, "the body is longer than %d bytes: change the members of a large group by several PATCHes", tooLarge.Limit)
	case err != nil:
		return nil, bad(typeInvalidSyntax, "the body is incomplete")
	}
	return body, nil
}

func (r *request) object() (map[string]any, error) {
	body, err := r.body()
	if err != nil {
		return nil, err
	}
	return parseObject(body)
}

// location returns the URL of a resource.
func (h *Handler) location(endpoint, id string) string {
	return h.cfg.URL + Path + endpoint + "/" + id
}

func entityTag(version string) string { return `W/"` + version + `"` }

// checkMatch compares If-Match with the entity tag of a resource (RFC 9110, section
// 13.1.1). Tags are weak, so that it compares them weakly.
func (r *request) checkMatch(version string) error {
	wanted := r.Header.Values("If-Match")
	if len(wanted) == 0 || tagIn(wanted, version) {
		return nil
	}
	return refuse(http.StatusPreconditionFailed, "the resource has changed: read it again")
}

// unchanged reports whether If-None-Match has the tag of a resource.
func (r *request) unchanged(version string) bool {
	return tagIn(r.Header.Values("If-None-Match"), version)
}

func tagIn(list []string, version string) bool {
	for _, line := range list {
		for one := range strings.SplitSeq(line, ",") {
			one = strings.TrimSpace(one)
			if one == "*" || strings.TrimPrefix(one, "W/") == `"`+version+`"` {
				return true
			}
		}
	}
	return false
}

// refusal returns the answer to an error. Errors without a sentinel have no detail; the
// log has their text.
func (h *Handler) refusal(w http.ResponseWriter, r *http.Request, err error) answer {
	var e *Error
	if !errors.As(err, &e) {
		e = errorOf(err)
	}
	var refused *broker.Refusal
	if errors.As(err, &refused) && refused.Retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((refused.Retry+time.Second-1)/time.Second)))
	}
	switch e.Status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="scim"`)
	case http.StatusInternalServerError, http.StatusServiceUnavailable:
		if !errors.Is(err, context.Canceled) {
			h.cfg.Log.ErrorContext(r.Context(), "answering a SCIM client", "err", err)
		}
	}
	body := map[string]any{"schemas": []string{urnError}, "status": strconv.Itoa(e.Status)}
	if e.Type != "" {
		body["scimType"] = e.Type
	}
	if e.Detail != "" {
		body["detail"] = e.Detail
	}
	return answer{status: e.Status, body: body}
}

// errorOf returns the protocol's error for an error of the domain.
func errorOf(err error) *Error {
	var refused *broker.Refusal
	detail := ""
	if errors.As(err, &refused) {
		detail = refused.Detail
	}
	for _, row := range []struct {
		err  error
		says Error
	}{
		{directory.ErrUnique, Error{http.StatusConflict, typeUniqueness, "another resource has this userName, displayName or externalId, or names the same person"}},
		{directory.ErrVersion, Error{http.StatusPreconditionFailed, "", "the resource has changed: read it again"}},
		{directory.ErrSelf, Error{http.StatusBadRequest, typeInvalidValue, "a user can't be their own manager"}},
		{directory.ErrMember, Error{http.StatusBadRequest, typeInvalidValue, "no user has the id of a member"}},
		{directory.ErrTooLarge, Error{http.StatusBadRequest, typeTooMany, directory.ErrTooLarge.Error()}},
		{directory.ErrUnknown, Error{http.StatusNotFound, "", "there is no such resource"}},
		{broker.ErrSlowDown, Error{http.StatusTooManyRequests, "", detail}},
		{broker.ErrUnauthenticated, Error{http.StatusUnauthorized, "", "send a token of \"broker scim token\" as Authorization: Bearer, or connect with the certificate of a configured client"}},
		{broker.ErrTwoIdentities, Error{http.StatusUnauthorized, "", "the call proves two identities"}},
		{broker.ErrProofExpired, Error{http.StatusUnauthorized, "", "the token or the certificate has expired"}},
		{broker.ErrBlocked, Error{http.StatusForbidden, "", "the client is blocked"}},
		{broker.ErrNotFound, Error{http.StatusNotFound, "", "there is no such resource"}},
		{broker.ErrUnavailable, Error{http.StatusServiceUnavailable, "", "the change could not be stored: try again"}},
	} {
		if errors.Is(err, row.err) {
			return &row.says
		}
	}
	return &Error{Status: http.StatusInternalServerError}
}
