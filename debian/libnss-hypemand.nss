# before what asks other machines, and what is answered for good by systemd-resolved
hosts before=resolve,dns hypemand
