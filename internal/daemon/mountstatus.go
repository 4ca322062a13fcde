package daemon

import (
	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon/prepare"
	"github.com/lacunafs/lacuna/internal/ondemand"
)

// mountedStatus is what status shows of a mount. It adds the mount's layers to
// those whose files are to be counted.
func (i *Instance) mountedStatus(m *mountedImage, layers map[ondemand.ObjectID]countedLayer) control.Mounted {
	if m.files != nil {
		return i.filesStatus(m)
	}
	out := control.Mounted{
		Dir: m.record.Path, Image: m.image.Ref, Digest: m.image.Digest.String(), Leaving: m.leaving, Files: m.plan.Files,
	}
	served := make(map[ondemand.ObjectID]*servedObject)
	for _, o := range m.devices {
		served[o.cached.ID()] = o
	}
	for n, l := range m.plan.Layers {
		s := control.MountedLayer{Digest: m.image.Layers[n].Digest.String(), Format: string(l.Format), Why: l.Why, Size: l.Size, Verified: l.Verified}
		if o := served[l.Device]; o != nil {
			layers[l.Device] = countedLayer{o.cached, l}
			settled, wrong := prepare.Indexed(o.blob)
			s.Verified = l.Verified || settled && l.Follows()
			if wrong != nil {
				s.Error = wrong.Error()
			}
			s.Object, s.Present = string(l.Device), o.cached.Present()
			front, _ := i.front.StatsOf(l.Device)
			asked := statsOf(o.asked)
			s.Hits, s.Misses, s.Requests, s.Fetched = front.Hits, front.Misses, uint64(asked.Requests), asked.Bytes
		}
		out.Layers = append(out.Layers, s)
	}
	return out
}
