package server

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A LogReader reads the audit log. It is safe for concurrent use.
type LogReader interface {
	// Checkpoint returns the newest checkpoint, a C2SP signed note.
	Checkpoint(ctx context.Context) ([]byte, error)

	// Record returns a record as it is stored; broker.ErrNotFound past the end.
	Record(ctx context.Context, index int64) (audit.Item, error)

	// Prove returns the inclusion proof of a record under the newest checkpoint;
	// broker.ErrNotFound if no checkpoint covers the record yet.
	Prove(ctx context.Context, index int64) (*audit.Proof, error)

	// Records returns the records of the current log among ids, in log order.
	Records(ctx context.Context, ids []broker.RecordID) ([]audit.Item, error)
}

func (s *Server) checkpoint(c *call) (reply, error) {
	note, err := s.cfg.Log.Checkpoint(c.r.Context())
	if err != nil {
		return reply{}, fmt.Errorf("reading the checkpoint: %w", err)
	}
	return reply{status: http.StatusOK, body: note, mediaType: "text/plain; charset=utf-8", header: public(1)}, nil
}

// auditRecord returns a record to auditors and to its parties. Others get the same
// answer as for a record past the end.
func (s *Server) auditRecord(c *call) (reply, error) {
	out, _, err := s.readRecord(c)
	if err != nil {
		return reply{}, err
	}
	return ok(out)
}

// readRecord returns the record that the path names, if the caller may read it.
func (s *Server) readRecord(c *call) (out api.AuditRecord, record audit.Record, err error) {
	index, err := strconv.ParseInt(c.r.PathValue("index"), 10, 64)
	if err != nil || index < 0 {
		return out, record, refuse(broker.ErrNotFound, "name a record by its index, from 0")
	}
	item, record, err := s.record(c.r.Context(), index)
	if err != nil {
		return out, record, err
	}
	if !s.mayRead(c, &record) {
		return out, record, broker.ErrNotFound
	}
	out = api.AuditRecord{Index: index, Leaf: item.Leaf, Record: item.Leaf}
	if len(item.Hashes) >= len(audit.Digest{}) {
		out.LeafHash = hex.EncodeToString(item.Hashes[:len(audit.Digest{})])
	}
	if out.Openings, err = openings(item.Openings); err != nil {
		return out, record, fmt.Errorf("decoding the openings of record %d: %w", index, err)
	}
	out.Proof, err = s.prove(c, index)
	return out, record, err
}

// mayRead reports whether the caller may read a record. Auditors may, and so may its
// parties: the record's caller and subject, the request's requester and the lease's
// holder. A person may also read the records of requests and leases that they may
// view.
func (s *Server) mayRead(c *call, r *audit.Record) bool {
	ctx, b := c.r.Context(), s.cfg.Broker
	for _, party := range []*audit.Party{r.Caller, r.Subject} {
		if party != nil && party.ID == c.who.ID {
			return true
		}
	}
	if b.May(ctx, c.caller(), broker.ActionAudit) {
		return true
	}
	if r.Lease != nil {
		if id, err := broker.ParseLeaseID(r.Lease.ID); err == nil {
			l, err := b.Lease(ctx, c.caller(), id)
			return err == nil && (l.Holder == c.who.ID || c.who.Kind == broker.KindPerson)
		}
	}
	if r.Request != nil {
		if id, err := broker.ParseRequestID(r.Request.ID); err == nil {
			request, err := b.Request(ctx, c.caller(), id)
			return err == nil && (request.Requester.ID == c.who.ID || c.who.Kind == broker.KindPerson)
		}
	}
	return false
}

func openings(stored []byte) (map[string]api.Opening, error) {
	if len(stored) == 0 {
		return nil, nil
	}
	decoded, err := audit.DecodeOpenings(stored)
	if err != nil {
		return nil, err
	}
	out := make(map[string]api.Opening, len(decoded))
	for name, o := range decoded {
		out[name] = api.Opening{Salt: hex.EncodeToString(o.Salt[:]), Text: o.Text}
	}
	return out, nil
}

// prove returns the inclusion proof of a record; nil if no checkpoint covers it yet.
func (s *Server) prove(c *call, index int64) (*api.InclusionProof, error) {
	proof, err := s.cfg.Log.Prove(c.r.Context(), index)
	if errors.Is(err, broker.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := &api.InclusionProof{Origin: proof.Origin, Index: proof.Index, Leaf: proof.Leaf, Hashes: make([]string, len(proof.Hashes)), Checkpoint: proof.Checkpoint}
	for i, h := range proof.Hashes {
		out.Hashes[i] = h.String()
	}
	return out, nil
}
