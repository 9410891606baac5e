// The picture, by file, camera, drop, paste or one of the demo's. It goes to the server inside an event: nothing is uploaded as
// a file, so nothing is written there.
const problem = element.querySelector('.ptp-problem');
const say = (text) => { problem.textContent = text; };
const send = (blob, name) => {
  const input = element.querySelector('.ptp-file'), megabytes = Number(input.dataset.megabytes);
  say('');
  if (blob.size > megabytes * 1e6) {
    say(`Picture '${name}' must have at most ${megabytes} MB, got ${(blob.size / 1e6).toFixed(1)}. Shrink it first.`);
    return;
  }
  const reader = new FileReader();
  reader.onerror = () => say(`Picture '${name}' cannot be read. Choose it again.`);
  reader.onload = () => trigger('picked', { name, data: blob.size ? reader.result : 'data:;base64,' });
  reader.readAsDataURL(blob);
};
const live = element.querySelector('.ptp-live'), video = element.querySelector('video');
const close = () => {
  (video.srcObject ? video.srcObject.getTracks() : []).forEach((track) => track.stop());
  video.srcObject = null;
  live.hidden = true;
};
element.addEventListener('change', (event) => {
  if (event.target.matches('.ptp-file') && event.target.files.length) {
    send(event.target.files[0], event.target.files[0].name);
    event.target.value = '';  // the same file can be chosen again
  }
});
element.addEventListener('click', async (event) => {
  const demo = event.target.closest('.ptp-demo');
  if (demo) {
    say('');
    trigger('picked', { demo: demo.dataset.demo });
  } else if (event.target.closest('.ptp-camera')) {
    say('');
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
      live.hidden = false;
      element.querySelector('.ptp-shoot').focus();
    } catch (error) {
      say('No camera can be used here: browsers allow it on this computer itself or over HTTPS, once you agree. Choose a file.');
    }
  } else if (event.target.closest('.ptp-shoot')) {
    if (!video.videoWidth) { return; }
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext('2d').drawImage(video, 0, 0);
    canvas.toBlob((blob) => send(blob, 'camera.jpg'), 'image/jpeg', 0.92);
    close();
    element.querySelector('.ptp-camera').focus();
  } else if (event.target.closest('.ptp-close')) {
    close();
    element.querySelector('.ptp-camera').focus();
  }
});
const area = element.querySelector('.ptp-picker');
area.addEventListener('dragover', (event) => { event.preventDefault(); area.classList.add('ptp-over'); });
area.addEventListener('dragleave', () => area.classList.remove('ptp-over'));
area.addEventListener('drop', (event) => {
  event.preventDefault();
  area.classList.remove('ptp-over');
  if (event.dataTransfer.files.length) { send(event.dataTransfer.files[0], event.dataTransfer.files[0].name); }
});
document.addEventListener('paste', (event) => {
  const file = [...(event.clipboardData ? event.clipboardData.files : [])].find((one) => one.type.startsWith('image/'));
  if (file) { event.preventDefault(); send(file, file.name || 'pasted'); }
});
