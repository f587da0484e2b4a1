package checker

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"time"

	"accessbroker.internal/api"
)

// A client makes one call after the other. What it does next, and at which replica, it draws
// from the seed of the run.
type client struct {
	name    string
	random  *rand.Rand
	world   *world
	pool    *pool
	history *History
	began   time.Time
	pace    time.Duration // the longest pause between two deeds
}

// A deed is something that a client does, and how often.
type deed struct {
	weight int
	do     func(*client, context.Context)
}

// A Workload names a mixture of deeds.
type Workload string

// The workloads.
const (
	Mixed   Workload = "mixed"   // everything
	Bounded Workload = "bounded" // mostly what limits and max_active bound
	Issuing Workload = "issuing" // mostly issuances, as many as possible
)

var workloads = map[Workload][]deed{
	Mixed: {
		{14, (*client).issueFree}, {12, (*client).issueLimited}, {14, (*client).issueActive}, {6, (*client).issueUpstream},
		{6, (*client).renew}, {14, (*client).giveBack}, {2, (*client).revoke}, {14, (*client).introspect},
		{6, (*client).ask}, {3, (*client).collect}, {10, (*client).vote}, {2, (*client).withdraw}, {4, (*client).read},
		{2, (*client).blockAndLift}, {1, (*client).kill}, {4, (*client).checkpoint},
	},
	Bounded: {{10, (*client).issueLimited}, {10, (*client).issueActive}, {6, (*client).giveBack}, {1, (*client).checkpoint}},
	Issuing: {{20, (*client).issueFree}, {2, (*client).giveBack}, {2, (*client).introspect}, {1, (*client).checkpoint}},
}

// run does one deed after the other until ctx ends.
func (c *client) run(ctx context.Context, w Workload) {
	deeds, sum := workloads[w], 0
	for _, d := range deeds {
		sum += d.weight
	}
	for ctx.Err() == nil {
		if c.pace > 0 {
			pause(ctx, c.random, c.pace)
		}
		n := c.random.IntN(sum)
		for _, d := range deeds {
			if n -= d.weight; n < 0 {
				d.do(c, ctx)
				break
			}
		}
	}
}

// operation begins an operation at a random replica.
func (c *client) operation(kind Kind, args Args) *Operation {
	return c.operationAt(c.random.IntN(len(c.world.endpoints)), kind, args)
}

func (c *client) operationAt(replica int, kind Kind, args Args) *Operation {
	var trace [16]byte
	for i := range trace {
		trace[i] = byte(c.random.Uint32())
	}
	return &Operation{Trace: hex.EncodeToString(trace[:]), Client: c.name, Replica: replica, Kind: kind, Args: args}
}

// send makes the call of an operation and adds it to the history. A call that begins after
// the end of the run is not made.
func (c *client) send(ctx context.Context, o *Operation, r request) Outcome {
	if ctx.Err() != nil {
		return Fail
	}
	// A call that was made is waited for: its outcome matters.
	c.world.endpoints[o.Replica].call(context.WithoutCancel(ctx), o, r)
	c.history.Add(*o)
	if o.Outcome == Unknown || o.Code == string(api.SlowDown) {
		pause := time.NewTimer(time.Duration(5+c.random.IntN(30)) * time.Millisecond)
		defer pause.Stop()
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
	}
	return o.Outcome
}

// as adds the proof of a workload to a request.
func (c *client) as(holder string, r request) request {
	r.proof, _ = c.world.proofOf(holder) // without a proof, the call is refused
	return r
}

// by adds the session of a person.
func (c *client) by(person string, r request) request {
	r.proof = c.world.sessions[person]
	return r
}

// holder returns one of a few workloads. They change with time, so that their limits are
// reached again and again.
func (c *client) holder(every time.Duration) string {
	generation := time.Since(c.began) / every
	return fmt.Sprintf("spiffe://acme.test/checker/g%d/h%d", generation, c.random.IntN(3))
}

const (
	generation = 3 * time.Second
	epoch      = 30 * time.Second
)

func (c *client) issueFree(ctx context.Context)    { c.issue(ctx, free, c.holder(epoch)) }
func (c *client) issueLimited(ctx context.Context) { c.issue(ctx, limited, c.holder(generation)) }
func (c *client) issueActive(ctx context.Context)  { c.issue(ctx, active, c.holder(epoch)) }
func (c *client) issueUpstream(ctx context.Context) {
	c.issue(ctx, orders, c.holder(epoch))
}

// issue requests and collects. It repeats some calls with the same idempotency key: those
// whose answer was lost, and a few others.
func (c *client) issue(ctx context.Context, entitlement, holder string) {
	args := Args{Holder: holder, Entitlement: entitlement, Key: fmt.Sprintf("%016x", c.random.Uint64())}
	ask := api.Ask{Entitlement: entitlement}
	if entitlement != orders {
		ask.Scopes = []string{entitlement[:len(entitlement)-len("-api")] + ":read"}
	}
	for {
		outcome := c.receive(ctx, c.operation(Issue, args), request{method: http.MethodPost, path: "/v1/credentials", body: ask})
		if outcome == Fail || outcome == OK && c.random.IntN(10) > 0 || outcome == Unknown && c.random.IntN(3) == 0 {
			return
		}
	}
}

// receive makes a call that issues, and keeps the credential.
func (c *client) receive(ctx context.Context, o *Operation, r request) Outcome {
	var token string
	r.into = readCredential(&token)
	outcome := c.send(ctx, o, c.as(o.Args.Holder, r))
	if outcome == OK && token != "" {
		c.pool.keep(&held{lease: o.Answer.Lease, request: o.Answer.Request, holder: o.Args.Holder, entitlement: o.Args.Entitlement, token: token})
	}
	return outcome
}

func (c *client) renew(ctx context.Context) {
	h := c.pool.any(c.random, func(h *held) bool { return !h.ended && h.entitlement != approved })
	if h == nil {
		return
	}
	args := Args{Holder: h.holder, Entitlement: h.entitlement, Lease: h.lease, Key: fmt.Sprintf("%016x", c.random.Uint64())}
	if c.receive(ctx, c.operation(Renew, args), request{method: http.MethodPost, path: "/v1/leases/" + h.lease + "/renew"}) == OK {
		c.pool.end(h.lease)
		c.inspect(ctx, h)
	}
}

// giveBack returns a credential, and asks another replica whether it still works.
func (c *client) giveBack(ctx context.Context) {
	h := c.pool.any(c.random, func(h *held) bool { return !h.ended || c.random.IntN(20) == 0 })
	if h == nil {
		return
	}
	args := Args{Holder: h.holder, Entitlement: h.entitlement, Lease: h.lease}
	r := c.as(h.holder, request{method: http.MethodPost, path: "/v1/leases/" + h.lease + "/revoke", body: api.Revocation{}, into: readLease})
	if c.send(ctx, c.operation(Return, args), r) == OK {
		c.pool.end(h.lease)
		c.inspect(ctx, h)
	}
}

// revoke ends a credential of another as a person.
func (c *client) revoke(ctx context.Context) {
	h := c.pool.any(c.random, func(h *held) bool { return !h.ended })
	if h == nil {
		return
	}
	args := Args{Person: operator, Entitlement: h.entitlement, Lease: h.lease}
	r := c.by(operator, request{method: http.MethodPost, path: "/v1/leases/" + h.lease + "/revoke", body: api.Revocation{Reason: "checked"}, into: readLease})
	if c.send(ctx, c.operation(Revoke, args), r) == OK {
		c.pool.end(h.lease)
		c.inspect(ctx, h)
	}
}

func (c *client) introspect(ctx context.Context) {
	if h := c.pool.any(c.random, func(h *held) bool { return h.entitlement != orders }); h != nil {
		c.inspect(ctx, h)
	}
}

// inspect asks a random replica whether a token is active.
func (c *client) inspect(ctx context.Context, h *held) {
	if h.entitlement != orders {
		c.inspectAt(ctx, c.random.IntN(len(c.world.endpoints)), h)
	}
}

func (c *client) inspectAt(ctx context.Context, replica int, h *held) {
	args := Args{Holder: h.holder, Entitlement: h.entitlement, Lease: h.lease, Token: hash(h.token)}
	r := c.as(h.holder, request{method: http.MethodPost, path: "/oauth2/introspect", form: url.Values{"token": {h.token}}, into: readIntrospection})
	c.send(ctx, c.operationAt(replica, Introspect, args), r)
}

// ask files a request that two people must approve.
func (c *client) ask(ctx context.Context) {
	f := &filed{holder: c.holder(epoch)}
	args := Args{Holder: f.holder, Entitlement: approved, Key: fmt.Sprintf("%016x", c.random.Uint64())}
	r := c.as(f.holder, request{method: http.MethodPost, path: "/v1/requests", body: api.Ask{Entitlement: approved, Scopes: []string{"approved:read"}}})
	r.into = func(body []byte, o *Operation) error {
		var request api.Request
		if err := json.Unmarshal(body, &request); err != nil {
			return err
		}
		f.id, f.digest = request.ID, request.Digest
		return readRequest(body, o)
	}
	for range 2 {
		switch c.send(ctx, c.operation(Ask, args), r) {
		case OK:
			c.pool.file(f)
			return
		case Fail:
			return
		}
	}
}

func (c *client) collect(ctx context.Context) {
	if f := c.pool.anyFiled(c.random); f != nil {
		args := Args{Holder: f.holder, Entitlement: approved, Request: f.id, Key: fmt.Sprintf("%016x", c.random.Uint64())}
		c.receive(ctx, c.operation(Collect, args), request{method: http.MethodPost, path: "/v1/requests/" + f.id + "/credentials"})
	}
}

// vote lets a person vote. Sometimes the person votes at two replicas at the same time.
func (c *client) vote(ctx context.Context) {
	f := c.pool.anyFiled(c.random)
	if f == nil {
		return
	}
	args := Args{Person: voters[c.random.IntN(len(voters))], Request: f.id, Decision: api.Approve}
	if c.random.IntN(5) == 0 {
		args.Decision = api.Deny
	}
	r := c.by(args.Person, request{
		method: http.MethodPost, path: "/v1/requests/" + f.id + "/approvals", into: readRequest,
		body: api.Vote{Decision: args.Decision, Digest: f.digest, Comment: "checked"},
	})
	var both sync.WaitGroup
	for range 1 + c.random.IntN(2) {
		o := c.operation(Vote, args)
		both.Go(func() {
			c.world.endpoints[o.Replica].call(context.WithoutCancel(ctx), o, r)
			c.history.Add(*o)
		})
	}
	both.Wait()
}

func (c *client) withdraw(ctx context.Context) {
	if f := c.pool.anyFiled(c.random); f != nil {
		r := c.as(f.holder, request{method: http.MethodPost, path: "/v1/requests/" + f.id + "/withdraw", into: readRequest})
		c.send(ctx, c.operation(Withdraw, Args{Holder: f.holder, Request: f.id}), r)
	}
}

func (c *client) read(ctx context.Context) {
	if f := c.pool.anyFiled(c.random); f != nil {
		c.readAt(ctx, c.random.IntN(len(c.world.endpoints)), f)
	}
}

func (c *client) readAt(ctx context.Context, replica int, f *filed) {
	r := c.as(f.holder, request{method: http.MethodGet, path: "/v1/requests/" + f.id, into: readRequest})
	c.send(ctx, c.operationAt(replica, Read, Args{Holder: f.holder, Request: f.id}), r)
}

// blockAndLift blocks a holder, tries its credentials, and lifts the block.
func (c *client) blockAndLift(ctx context.Context) {
	holder := c.holder(epoch)
	if !c.pool.block(holder) {
		return
	}
	body := api.BlockChange{Selector: api.Selector{Holder: holder}, Reason: "checked", Unmatched: true}
	c.whileBlocked(ctx, holder, Block, request{method: http.MethodPost, path: "/v1/blocks", body: body})
}

// kill blocks a holder and revokes all its credentials.
func (c *client) kill(ctx context.Context) {
	holder := c.holder(epoch)
	if !c.pool.block(holder) {
		return
	}
	body := api.Kill{Selector: api.Selector{Holder: holder}, Reason: "checked", Force: true, Unmatched: true}
	c.whileBlocked(ctx, holder, Kill, request{method: http.MethodPost, path: "/v1/revocations", body: body})
}

func (c *client) whileBlocked(ctx context.Context, holder string, kind Kind, r request) {
	defer c.pool.unblock(holder)
	if c.send(ctx, c.operation(kind, Args{Holder: holder, Person: operator}), c.by(operator, r)) == OK {
		for range 1 + c.random.IntN(4) {
			if h := c.pool.any(c.random, func(h *held) bool { return h.holder == holder }); h != nil {
				c.inspect(ctx, h)
			}
			c.issue(ctx, free, holder)
		}
	}
	lift := api.BlockChange{Selector: api.Selector{Holder: holder}, Reason: "checked"}
	c.send(ctx, c.operation(Lift, Args{Holder: holder, Person: operator}), c.by(operator, request{method: http.MethodDelete, path: "/v1/blocks", body: lift}))
}

func (c *client) checkpoint(ctx context.Context) {
	c.send(ctx, c.operation(Checkpoint, Args{}), request{method: http.MethodGet, path: "/log/checkpoint", into: readNote})
}
