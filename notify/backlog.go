package notify

import (
	"context"
	"fmt"
	"slices"
	"time"

	"accessbroker.internal/broker"
)

const (
	maxBacklog      = 100  // notices about one requester in the queue of a channel
	backlogsPerPass = 16   // backlogs trimmed in one pass
	backlogWindow   = 1000 // notices of a backlog read in one pass
)

// trimBacklogs bounds the notices about one requester in the queue of a channel.
// A requester who files and withdraws requests all day then can't fill the queue,
// and a channel that recovers does not receive messages about ended requests.
func (o *Outbox) trimBacklogs(ctx context.Context, now time.Time) error {
	var list []broker.Backlog
	err := o.cfg.Store.View(ctx, func(tx broker.Tx) (err error) {
		list, err = tx.Backlogs(maxBacklog, backlogsPerPass)
		return err
	})
	if err != nil {
		return fmt.Errorf("counting notices: %w", err)
	}
	for _, b := range list {
		if err := o.trimBacklog(ctx, b, now); err != nil {
			return err
		}
	}
	return nil
}

// trimBacklog drops the notices that are no longer needed. If more than maxBacklog
// remain, it drops the newest that ask for approval or report a withdrawal.
func (o *Outbox) trimBacklog(ctx context.Context, b broker.Backlog, now time.Time) error {
	var drop, keep []*broker.Notice
	err := o.cfg.Store.View(ctx, func(tx broker.Tx) error {
		list, err := tx.Notices(broker.NoticeQuery{Channel: b.Channel, Requester: b.Requester, Limit: backlogWindow})
		if err != nil {
			return err
		}
		for _, n := range list {
			j, err := newJob(tx, n, now)
			switch {
			case err != nil:
				return err
			case j.needed:
				keep = append(keep, n)
			default:
				drop = append(drop, n)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading a backlog of notices: %w", err)
	}
	for i := len(keep) - 1; i >= 0 && len(keep) > maxBacklog; i-- {
		if n := keep[i]; n.Event == broker.NoticePending || n.Event == broker.NoticeWithdrawn {
			drop, keep = append(drop, n), slices.Delete(keep, i, i+1)
			o.observe(n, outcomeCrowded)
		}
	}
	o.cfg.Log.WarnContext(ctx, "dropping notices: too many are queued about one requester", "channel", b.Channel, "requester", b.Requester, "dropped", len(drop))
	if err := o.drop(ctx, drop...); err != nil {
		return fmt.Errorf("dropping notices: %w", err)
	}
	return nil
}
